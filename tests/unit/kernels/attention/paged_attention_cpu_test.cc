// Attention over encoded pages, sinks and window against the fp64 reference.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "pkv/kernels/paged_attention.h"
#include "proto/base/thread_pool.h"
#include "tests/support/attention_reference.h"
#include "tests/support/block_fixture.h"
#include "tests/support/simd_targets.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

struct Case {
  const char* preset = "default";
  int bits_k = 2, bits_v = 2;
  int group = 128;
  int head_dim = 128;
  int heads_per_kv = 4;
  int num_blocks = 3;
  int num_appended = 1;  // of them flushed while decoding
  int window = 37;
  int num_queries = 1;
  int num_kv_heads = 2;
};

std::ostream& operator<<(std::ostream& os, const Case& c) {
  return os << c.preset << " K" << c.bits_k << "V" << c.bits_v << " group " << c.group
            << " head_dim " << c.head_dim << " G " << c.heads_per_kv << " blocks " << c.num_blocks
            << " (" << c.num_appended << " appended) window " << c.window << " queries "
            << c.num_queries;
}

// A cached sequence and a query, owned.
class Sequence {
 public:
  explicit Sequence(const Case& c, uint64_t seed = 99, double query_width = 1.0)
      : shape_{1, c.num_kv_heads, c.head_dim},
        tokens_(RandomTensor(seed, c.num_kv_heads, c.num_blocks * kBlockTokens + c.window,
                             c.head_dim)) {
    CodecParams params = PresetFor(c.preset, shape_);
    if (!params.encoding.is_fp16()) {
      SetBits(c.bits_k, c.bits_v, params);
      params.encoding.k_group_tokens = c.group;
      params.encoding.v_group_channels = std::min(c.group, c.head_dim);
    }
    const KvTensorView all = std::as_const(tokens_).view();
    Codebook bank = *MinePatterns(all, params, {});
    for (int i = 0; i < c.num_blocks; ++i) {
      const Phase phase = i < c.num_blocks - c.num_appended ? Phase::kPrefill : Phase::kDecode;
      blocks_.push_back(
          EncodeBlock(shape_, params, all.Tokens(i * kBlockTokens, kBlockTokens), bank, phase, i));
      bank = blocks_.back().codebook;
    }
    bank_ = std::make_unique<Codebook>(bank);
    for (const EncodedBlock& block : blocks_) {
      pages_.push_back({&block.header, block.frame.span(), bank_.get()});
    }
    TestRandom random(seed + 1);
    const int num_heads = c.num_kv_heads * c.heads_per_kv;
    q_.resize(static_cast<size_t>(c.num_queries) * num_heads * c.head_dim);
    for (float& q : q_) q = static_cast<float>(query_width * random.Normal());
    out_.assign(q_.size(), std::nanf(""));
    lse_.assign(static_cast<size_t>(c.num_queries) * num_heads, std::nanf(""));
    args_ = {.q = q_.data(),
             .num_queries = c.num_queries,
             .num_qo_heads = num_heads,
             .sm_scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim)),
             .pages = pages_,
             .window = all.Tokens(c.num_blocks * kBlockTokens, c.window),
             .out = out_.data(),
             .lse = lse_.data()};
  }

  void Run(ThreadPool* pool = nullptr) {
    ASSERT_THAT(PagedAttention(args_, {.pool = pool}), IsOk());
  }
  void CheckAgainstReference(CodeArithmetic arithmetic = CodeArithmetic::kInteger) {
    PagedAttentionCpu(args_, nullptr, arithmetic);
    const AttentionReference want = ComputeAttentionReference(args_, arithmetic);
    for (size_t i = 0; i < out_.size(); ++i) {
      ASSERT_LE(std::abs(out_[i] - want.out[i]), want.out_bound[i]) << "value " << i;
    }
    for (size_t i = 0; i < lse_.size(); ++i) {
      if (lse_[i] == want.lse[i]) continue;  // minus infinity without tokens
      ASSERT_LE(std::abs(lse_[i] - want.lse[i]), want.lse_bound[i]) << "head " << i;
    }
  }

  const KvShape shape_;
  TestTensor tokens_;
  std::vector<EncodedBlock> blocks_;
  std::unique_ptr<Codebook> bank_;
  std::vector<BlockPage> pages_;
  std::vector<float> q_, out_, lse_;
  AttentionArgs args_;
};

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const char* preset : {"kivi2", "pkv2", "default", "default4"}) {
    for (const int head_dim : {64, 128}) {
      for (const int group : {32, 64, 128}) {
        cases.push_back({.preset = preset, .group = group, .head_dim = head_dim});
        cases.push_back({.preset = preset,
                         .bits_k = 4,
                         .bits_v = 4,
                         .group = group,
                         .head_dim = head_dim,
                         .num_appended = 2});
      }
      cases.push_back({.preset = preset, .bits_k = 4, .head_dim = head_dim, .num_queries = 3});
      cases.push_back({.preset = preset, .bits_v = 4, .head_dim = head_dim, .num_appended = 0});
    }
  }
  cases.push_back({.preset = "fp16", .head_dim = 64});
  cases.push_back({.preset = "fp16", .num_queries = 3});
  for (int heads_per_kv = 1; heads_per_kv <= 8; ++heads_per_kv) {
    cases.push_back({.heads_per_kv = heads_per_kv});
  }
  for (const int window : {0, 1, 127, 128, 129, 255}) {
    cases.push_back({.window = window});
    cases.push_back({.num_blocks = 0, .num_appended = 0, .window = window});
  }
  cases.push_back({.window = 130, .num_queries = 130});
  cases.push_back({.num_blocks = 1, .num_appended = 0, .window = 255, .num_queries = 200});
  cases.push_back({.preset = "kivi2", .head_dim = 64, .num_blocks = 70, .num_appended = 0});
  cases.push_back({.preset = "pkv2", .num_blocks = 6, .num_appended = 6, .window = 5});
  return cases;
}

class PagedAttentionCpuTest : public testing::TestWithParam<Case> {};

TEST_P(PagedAttentionCpuTest, IsWithinTheBoundOfTheReference) {
  Sequence(GetParam()).CheckAgainstReference();
}

TEST_P(PagedAttentionCpuTest, InFloatIsWithinTheBoundOfTheReference) {
  Sequence(GetParam()).CheckAgainstReference(CodeArithmetic::kFloat);
}

TEST_P(PagedAttentionCpuTest, DoesNotDependOnTheThreadPool) {
  Sequence sequence(GetParam());
  sequence.Run();
  const std::vector<float> out = sequence.out_, lse = sequence.lse_;
  ThreadPool pool(3);
  sequence.Run(&pool);
  EXPECT_EQ(std::memcmp(out.data(), sequence.out_.data(), out.size() * sizeof(float)), 0);
  EXPECT_EQ(std::memcmp(lse.data(), sequence.lse_.data(), lse.size() * sizeof(float)), 0);
}

INSTANTIATE_TEST_SUITE_P(Shapes, PagedAttentionCpuTest, testing::ValuesIn(AllCases()));

class PagedAttentionTargetTest : public testing::TestWithParam<Case> {};

TEST_P(PagedAttentionTargetTest, HasEqualBitsOnEveryInstructionSet) {
  Sequence sequence(GetParam());
  sequence.Run();
  const std::vector<float> out = sequence.out_, lse = sequence.lse_;
  ForEachSimdTarget([&] {
    sequence.Run();
    ASSERT_EQ(std::memcmp(out.data(), sequence.out_.data(), out.size() * sizeof(float)), 0);
    ASSERT_EQ(std::memcmp(lse.data(), sequence.lse_.data(), lse.size() * sizeof(float)), 0);
  });
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, PagedAttentionTargetTest,
    testing::Values(Case{.preset = "kivi2", .group = 32}, Case{.preset = "pkv2", .head_dim = 64},
                    Case{.preset = "default", .heads_per_kv = 7},
                    Case{.preset = "default", .bits_v = 4, .group = 64, .head_dim = 64},
                    Case{.preset = "default4", .bits_k = 4, .bits_v = 4, .num_queries = 3}));

// A query far along one token's K leaves no weight elsewhere: the answer is that token's V.
TEST(PagedAttentionStructureTest, OneHugeScoreReturnsThatTokensV) {
  constexpr int kDim = 128;
  for (const char* preset : {"kivi2", "pkv2", "default", "default4", "fp16"}) {
    Sequence sequence({.preset = preset, .heads_per_kv = 2, .num_kv_heads = 1});
    const ReferenceTokens tokens = CollectTokens(sequence.args_, 0);
    int found = 0;
    for (const int block : {0, 2}) {
      for (int token = block * kBlockTokens; token < (block + 1) * kBlockTokens; ++token) {
        const std::span<const double> k = tokens.k_row(token), v = tokens.v_row(token);
        for (int j = 0; j < kDim; ++j) {
          sequence.q_[j] = sequence.q_[kDim + j] = static_cast<float>(1e3 * k[j]);
        }
        const AttentionReference want = ComputeAttentionReference(sequence.args_);
        const bool alone = std::equal(v.begin(), v.end(), want.out.begin());
        if (!alone) continue;  // a longer K in the same direction scores higher
        ++found;
        sequence.Run();
        // One token: only the parts of its value are added, patterns and zero points among them,
        // and rotated there and back.
        const double bound =
            SumBound(8, tokens.v_largest[token]) + 2 * RotationBound(kDim, Norm(v));
        for (int j = 0; j < kDim; ++j) {
          ASSERT_LE(std::abs(sequence.out_[j] - v[j]), bound)
              << preset << " token " << token << " channel " << j;
        }
        if (found % 4 == 0) break;
      }
    }
    EXPECT_GE(found, 2) << preset;
  }
}

TEST(PagedAttentionStructureTest, ConstantVComesBack) {
  for (const char* preset : {"kivi2", "pkv2", "default", "default4", "fp16"}) {
    const Case c = {.preset = preset, .num_appended = 0};
    Sequence sequence(c);
    const CodecParams params = PresetFor(preset, sequence.shape_);
    // Blocks get V as their encoding has it: rotated, 0.625 everywhere is one loud channel.
    TestTensor constant = sequence.tokens_, stored = sequence.tokens_;
    std::fill(constant.v.begin(), constant.v.end(), FloatToFloat16(0.625f));
    std::vector<double> row(c.head_dim, 0.625);
    if (params.encoding.rotated) RotateReference(row);
    for (size_t i = 0; i < stored.v.size(); ++i) {
      stored.v[i] = FloatToFloat16(static_cast<float>(row[i % c.head_dim]));
    }
    const KvTensorView all = std::as_const(stored).view();
    const Codebook bank = *MinePatterns(all, params, {});
    for (int i = 0; i < c.num_blocks; ++i) {
      sequence.blocks_[i] =
          EncodeBlock(sequence.shape_, params, all.Tokens(i * kBlockTokens, kBlockTokens), bank,
                      Phase::kPrefill, i);
      sequence.pages_[i] = {&sequence.blocks_[i].header, sequence.blocks_[i].frame.span(), &bank};
    }
    sequence.args_.window =
        std::as_const(constant).view().Tokens(c.num_blocks * kBlockTokens, c.window);
    sequence.Run();
    // The loud channel was rounded to fp16, and returns to every channel divided by sqrt(head_dim).
    const double norm = Norm(row);
    const double bound = SumBound(2 * all.num_tokens, params.encoding.rotated ? norm : 0.625) +
                         (params.encoding.rotated ? Float16Bound(norm) / std::sqrt(c.head_dim) +
                                                        2 * RotationBound(c.head_dim, norm)
                                                  : 0.0);
    for (const float out : sequence.out_) ASSERT_LE(std::abs(out - 0.625), bound) << preset;
  }
}

TEST(PagedAttentionStructureTest, EqualScoresGiveTheMeanOfV) {
  Sequence sequence({.preset = "default"});
  std::fill(sequence.q_.begin(), sequence.q_.end(), 0.0f);
  sequence.CheckAgainstReference();
  const int tokens = 3 * kBlockTokens + 37;
  for (const float lse : sequence.lse_) {
    EXPECT_LE(std::abs(lse - std::log(tokens)), SumBound(tokens, 1));
  }
}

TEST(PagedAttentionStructureTest, ScoresFarApartStayFinite) {
  Sequence sequence({.preset = "default"}, 5, /*query_width=*/1e3);
  sequence.Run();
  for (const float out : sequence.out_) ASSERT_TRUE(std::isfinite(out));
  for (const float lse : sequence.lse_) ASSERT_TRUE(std::isfinite(lse));
}

// Memory that belongs to no token holds NaN: window slots past the end, and the output.
TEST(PagedAttentionStructureTest, ReadsNoMemoryOutsideItsTokens) {
  Sequence sequence({.preset = "default", .window = 40});
  sequence.Run();
  const std::vector<float> want = sequence.out_;
  const KvTensorView window = sequence.args_.window;
  TestTensor poisoned(2, 300, 128);
  std::fill(poisoned.k.begin(), poisoned.k.end(), 0x7e00);
  std::fill(poisoned.v.begin(), poisoned.v.end(), 0x7e00);
  for (int head = 0; head < 2; ++head) {
    const auto at = static_cast<ptrdiff_t>(head) * 300 * 128;
    std::copy_n(window.k_row(head, 0), 40 * 128, poisoned.k.begin() + at);
    std::copy_n(window.v_row(head, 0), 40 * 128, poisoned.v.begin() + at);
  }
  sequence.args_.window = std::as_const(poisoned).view().Tokens(0, 40);
  std::fill(sequence.out_.begin(), sequence.out_.end(), std::nanf(""));
  sequence.Run();
  EXPECT_EQ(std::memcmp(want.data(), sequence.out_.data(), want.size() * sizeof(float)), 0);
}

// What stands in the padding of a frame reaches no result.
TEST(PagedAttentionStructureTest, ReadsNoPaddingOfAFrame) {
  Sequence sequence({.preset = "default", .head_dim = 64, .num_kv_heads = 1});
  sequence.Run();
  const std::vector<float> want = sequence.out_;
  int poisoned = 0;
  for (EncodedBlock& block : sequence.blocks_) {
    const PayloadLayout layout = PayloadLayout::Of(block.header);
    const int64_t used = layout.appended + layout.num_kv_heads * layout.appended_head_bytes;
    for (int64_t i = used; i < layout.frame_bytes; ++i, ++poisoned) {
      block.frame.data()[i] = std::byte{0x7f};
    }
  }
  sequence.Run();
  EXPECT_EQ(std::memcmp(want.data(), sequence.out_.data(), want.size() * sizeof(float)), 0);
  RecordProperty("poisoned_bytes", poisoned);
}

// A query sees none later than its own: what follows it does not change a bit.
TEST(PagedAttentionStructureTest, LaterTokensDoNotReachEarlierQueries) {
  Sequence sequence({.window = 20, .num_queries = 6});
  sequence.Run();
  const std::vector<float> before = sequence.out_;
  for (int head = 0; head < 2; ++head) {
    const auto last = static_cast<ptrdiff_t>((head + 1) * sequence.tokens_.num_tokens - 1) * 128;
    std::fill_n(sequence.tokens_.k.begin() + last, 128, FloatToFloat16(3.0f));
    std::fill_n(sequence.tokens_.v.begin() + last, 128, FloatToFloat16(-3.0f));
  }
  sequence.Run();
  const size_t per_query = before.size() / 6;
  EXPECT_EQ(std::memcmp(before.data(), sequence.out_.data(), 5 * per_query * sizeof(float)), 0);
  EXPECT_NE(std::memcmp(before.data() + 5 * per_query, sequence.out_.data() + 5 * per_query,
                        per_query * sizeof(float)),
            0);
}

// Pages of one sequence may name banks of different length: each its own prefix of the chain.
TEST(PagedAttentionStructureTest, EveryPageMayBringItsOwnBank) {
  Sequence sequence({.preset = "pkv2", .num_blocks = 5, .num_appended = 4});
  for (size_t i = 0; i < sequence.pages_.size(); ++i) {
    sequence.pages_[i].codebook = &sequence.blocks_[i].codebook;
  }
  sequence.CheckAgainstReference();
}

}  // namespace
}  // namespace pkv
