// Decode attention over blocks that the codec made, of every preset: numbers like a model's.
#include <gtest/gtest.h>

#include <cmath>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/block_fixture.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/decode_device.h"

namespace pkv {
namespace {

constexpr uint64_t kSeed = 41;
constexpr int kBlocks = 6, kWindow = 143, kHeads = 2;

struct Case {
  DecodeKernel kernel;
  std::string preset;
  int head_dim;
};
std::ostream& operator<<(std::ostream& os, const Case& c) {
  return os << NameOf(c.kernel) << " " << c.preset << " head_dim " << c.head_dim;
}

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const DecodeKernel kernel : kDecodeKernels) {
    for (const std::string& preset : PresetNames()) {
      for (const int head_dim : {64, 128}) cases.push_back({kernel, preset, head_dim});
    }
  }
  return cases;
}

// The blocks of a sequence, and the bank they end with.
struct Sequence {
  TestTensor tokens;
  std::vector<EncodedBlock> blocks;
  Codebook bank;
};

Sequence Encode(const CodecParams& params, int head_dim) {
  const KvShape shape = {1, kHeads, head_dim};
  Sequence sequence = {
      RandomTensor(kSeed, kHeads, kBlocks * kBlockTokens + kWindow + 1, head_dim), {}, {}};
  const KvTensorView all = std::as_const(sequence.tokens).view();
  sequence.bank = *MinePatterns(all, params, {});
  for (int i = 0; i < kBlocks; ++i) {
    const Phase phase = i < kBlocks - 2 ? Phase::kPrefill : Phase::kDecode;
    sequence.blocks.push_back(EncodeBlock(shape, params, all.Tokens(i * kBlockTokens, kBlockTokens),
                                          sequence.bank, phase, i));
    sequence.bank = sequence.blocks.back().codebook;
  }
  return sequence;
}

void CopyRow(const uint16_t* from, std::span<uint16_t> to) {
  std::copy_n(from, to.size(), to.data());
}

// One request that holds the sequence.
DecodeCase CaseOf(const Sequence& sequence, const CodecParams& params, int head_dim) {
  DecodeCaseSpec spec;
  spec.seed = kSeed;
  spec.shape = {.num_qo_heads = 4 * kHeads,
                .num_kv_heads = kHeads,
                .head_dim = head_dim,
                .encoding = params.encoding,
                .num_sinks = params.num_sinks};
  spec.bank_capacity = kMaxPatterns;
  spec.requests = {{kBlocks, kWindow, sequence.bank.num_k(), sequence.bank.num_v()}};
  spec.shares = false;
  DecodeCase of(spec);
  const KvTensorView window =
      std::as_const(sequence.tokens).view().Tokens(kBlocks * kBlockTokens, kWindow + 1);
  for (int b = 0; b < kBlocks; ++b) {
    const std::span<std::byte> page = of.page_bytes(0, b);
    std::copy_n(sequence.blocks[b].frame.data(), page.size(), page.begin());
  }
  const ObjectHeader& first = sequence.blocks[0].header;
  const PayloadLayout layout = PayloadLayout::Of(first);
  for (int head = 0; head < kHeads; ++head) {
    const HeadFrame<const std::byte> frame(first, layout, sequence.blocks[0].frame.data(), head);
    for (int s = 0; s < params.num_sinks; ++s) {
      CopyRow(frame.k_rows + s * head_dim, of.sink_row(false, 0, head, s));
      CopyRow(frame.v_rows + s * head_dim, of.sink_row(true, 0, head, s));
    }
    for (int t = 0; t < kWindow; ++t) {
      CopyRow(window.k_row(head, t), of.window_row(false, 0, head, t));
      CopyRow(window.v_row(head, t), of.window_row(true, 0, head, t));
    }
    CopyRow(window.k_row(head, kWindow), of.token_row(false, 0, head));
    CopyRow(window.v_row(head, kWindow), of.token_row(true, 0, head));
    for (int i = 0; i < sequence.bank.num_k(); ++i) {
      CopyRow(sequence.bank.k(head).data() + i * head_dim, of.bank_row(false, 0, head, i));
    }
    for (int i = 0; i < sequence.bank.num_v(); ++i) {
      CopyRow(sequence.bank.v(head).data() + i * head_dim, of.bank_row(true, 0, head, i));
    }
  }
  return of;
}

class DecodeAttentionPresetsTest : public CudaTest, public testing::WithParamInterface<Case> {};

TEST_P(DecodeAttentionPresetsTest, AreWithinTheirBounds) {
  const auto& [kernel, preset, head_dim] = GetParam();
  const CodecParams params = PresetFor(preset, {1, kHeads, head_dim});
  DecodeCase of = CaseOf(Encode(params, head_dim), params, head_dim);
  const DecodeCheck check(of);
  const auto attention = MakeDecode(of.spec().shape, kernel, stream());
  const auto after = RunOnce(*attention, of, stream());
  ASSERT_TRUE(after.ok()) << after.status();
  DecodeErrors errors;
  EXPECT_EQ(check.Problem(*after, kernel, /*is_random=*/true, &errors), "");
  std::cout << GetParam() << ": " << errors << "\n";
  EXPECT_LE(errors.frobenius(), kDecodeFrobenius);
}

INSTANTIATE_TEST_SUITE_P(All, DecodeAttentionPresetsTest, testing::ValuesIn(AllCases()),
                         [](const testing::TestParamInfo<Case>& info) {
                           std::string name = NameOf(info.param.kernel) + info.param.preset + "d" +
                                              std::to_string(info.param.head_dim);
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace
}  // namespace pkv
