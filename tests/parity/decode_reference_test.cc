// Before a GPU is held to the fp64 reference of decode attention, the CPU's own attention is: two
// readers of the same bytes that share no loop. Runs everywhere.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/attention/attention_backends.h"
#include "pkv/block/aligned_buffer.h"
#include "tests/support/decode_lattice.h"
#include "tests/support/decode_reference.h"
#include "tests/support/random_decode_spec.h"

namespace pkv {
namespace {

// One request of a case as PagedAttention() takes it, in fp32: the twin's arithmetic and bounds.
class CpuRequest {
 public:
  CpuRequest(DecodeCase& of, int request)
      : case_(of), spec_(of.spec()), request_(request), window_(Window()) {
    const DecodeRequest& r = spec_.requests[request];
    codebook_ = MakeBank();
    for (int block = 0; block < r.num_blocks; ++block) AddPage(block);
    for (size_t i = 0; i < headers_.size(); ++i) {
      pages_.push_back({headers_[i].get(), frames_[i].span(), &codebook_});
    }
  }

  void Run(double sm_scale, std::vector<float>& out, std::vector<float>& lse) {
    const int heads = spec_.shape.num_qo_heads;
    std::vector<float> q;
    for (int head = 0; head < heads; ++head) {
      for (const uint16_t x : case_.q(request_, head)) {
        q.push_back(spec_.shape.query_type == QueryType::kFloat16
                        ? Float16ToFloat(x)
                        : std::bit_cast<float>(static_cast<uint32_t>(x) << 16));
      }
    }
    out.assign(q.size(), std::nanf(""));
    lse.assign(heads, std::nanf(""));
    const AttentionArgs args = {.q = q.data(),
                                .num_qo_heads = heads,
                                .sm_scale = static_cast<float>(sm_scale),
                                .pages = pages_,
                                .window = std::as_const(window_).view(),
                                .out = out.data(),
                                .lse = lse.data()};
    PagedAttentionCpu(args, nullptr, CodeArithmetic::kFloat);
  }

 private:
  TestTensor Window() const {
    const int tokens = spec_.requests[request_].num_window_tokens, d = spec_.shape.head_dim;
    TestTensor window(spec_.shape.num_kv_heads, tokens + (spec_.has_token ? 1 : 0), d);
    for (int head = 0; head < window.num_kv_heads; ++head) {
      for (int t = 0; t < window.num_tokens; ++t) {
        for (const bool is_v : {false, true}) {
          const auto from = t < tokens ? case_.window_row(is_v, request_, head, t)
                                       : case_.token_row(is_v, request_, head);
          auto& to = is_v ? window.v : window.k;
          std::copy(from.begin(), from.end(),
                    to.begin() + (static_cast<size_t>(head) * window.num_tokens + t) * d);
        }
      }
    }
    return window;
  }

  Codebook MakeBank() const {
    Codebook bank(spec_.shape.num_kv_heads, spec_.shape.head_dim);
    if (!spec_.shape.encoding.has_patterns) return bank;
    const DecodeRequest& r = spec_.requests[request_];
    for (int head = 0; head < spec_.shape.num_kv_heads; ++head) {
      for (int i = 0; i < r.num_patterns_k; ++i) {
        bank.AppendK(head, case_.bank_row(false, request_, head, i));
      }
      for (int i = 0; i < r.num_patterns_v; ++i) {
        bank.AppendV(head, case_.bank_row(true, request_, head, i));
      }
    }
    return bank;
  }

  void AddPage(int block) {
    auto header = std::make_unique<ObjectHeader>();
    header->kind = ObjectKind::kBlock;
    header->set_encoding(spec_.shape.encoding);
    header->num_layers = 1;
    header->num_kv_heads = static_cast<uint16_t>(spec_.shape.num_kv_heads);
    header->head_dim = static_cast<uint16_t>(spec_.shape.head_dim);
    header->num_tokens = kBlockTokens;
    header->num_sinks = static_cast<uint16_t>(block == 0 ? spec_.shape.num_sinks : 0);
    const PayloadLayout layout = PayloadLayout::Of(*header);
    AlignedBuffer frame(static_cast<size_t>(layout.frame_bytes));
    const auto page = case_.page_bytes(request_, block);
    std::copy(page.begin(), page.end(), frame.data());
    auto* rows = reinterpret_cast<uint16_t*>(frame.data() + layout.sinks);
    for (int head = 0; head < spec_.shape.num_kv_heads; ++head) {
      for (const bool is_v : {false, true}) {
        for (int s = 0; s < header->num_sinks; ++s) {
          const auto row = case_.sink_row(is_v, request_, head, s);
          rows = std::copy(row.begin(), row.end(), rows);
        }
      }
    }
    headers_.push_back(std::move(header));
    frames_.push_back(std::move(frame));
  }

  DecodeCase& case_;
  const DecodeCaseSpec& spec_;
  const int request_;
  TestTensor window_;
  Codebook codebook_;
  std::vector<std::unique_ptr<ObjectHeader>> headers_;
  std::vector<AlignedBuffer> frames_;
  std::vector<BlockPage> pages_;
};

void ExpectCpuAgrees(const DecodeCaseSpec& spec) {
  SCOPED_TRACE(testing::PrintToString(spec));
  DecodeCase of(spec);
  const DecodeAttentionArgs args = of.ArgsAt(of.memory().data());
  const DecodeReference want =
      ComputeDecodeReference(spec.shape, args, std::vector{kCudaCoreArithmetic});
  for (int r = 0; r < of.batch(); ++r) {
    std::vector<float> out, lse;
    CpuRequest(of, r).Run(args.sm_scale, out, lse);
    const size_t at = static_cast<size_t>(r) * out.size();
    for (size_t i = 0; i < out.size(); ++i) {
      ASSERT_LE(std::abs(out[i] - want.out[at + i]), want.bounds[0].out[at + i])
          << "request " << r << " value " << i << ": " << out[i] << ", not " << want.out[at + i];
    }
    for (size_t i = 0; i < lse.size(); ++i) {
      const size_t row = r * lse.size() + i;
      if (lse[i] == want.lse[row]) continue;  // minus infinity without tokens
      ASSERT_LE(std::abs(lse[i] - want.lse[row]), want.bounds[0].lse[row]) << "head " << i;
    }
  }
}

TEST(DecodeReferenceTest, AgreesWithAttentionOnTheCpu) {
  constexpr uint64_t kFirstSeed = 1000;
  constexpr int kCases = 60;
  RecordProperty("first seed", static_cast<int>(kFirstSeed));
  for (int i = 0; i < kCases; ++i) {
    ExpectCpuAgrees(RandomDecodeSpec(kFirstSeed + i).Draw());
    if (HasFatalFailure()) return;
  }
}

// The exact tests of the device rest on this: the output is one token's V, a small multiple of a
// power of two.
TEST(DecodeReferenceTest, LatticeCasesHaveOneToken) {
  for (const bool rotated : {false, true}) {
    for (const bool by_pattern : {false, true}) {
      SCOPED_TRACE(testing::Message() << "rotated " << rotated << " by pattern " << by_pattern);
      DecodeCaseSpec spec;
      spec.shape = {.num_qo_heads = 8,
                    .num_kv_heads = 2,
                    .head_dim = 64,
                    .encoding = {.bits_k = 2,
                                 .bits_v = 4,
                                 .k_group_tokens = 64,
                                 .v_group_channels = 32,
                                 .has_patterns = true,
                                 .k_fine_tokens = kFineTokens,
                                 .rotated = rotated},
                    .num_sinks = 16};
      spec.bank_capacity = 33;
      spec.requests.assign(20, {2, 33, 33, 33});
      spec.shares = false;
      spec.sm_scale = 1;
      DecodeCase of(spec);
      LatticeValues(of, 3);
      OneHotKeys(of, 3, by_pattern);
      const DecodeReference reference =
          ComputeDecodeReference(spec.shape, of.ArgsAt(of.memory().data()), {});
      constexpr double kUnit = 0x1p-4;
      bool differs = false;
      for (const double x : reference.out) {
        const double multiple = x / kUnit;
        ASSERT_LE(std::abs(multiple - std::nearbyint(multiple)),
                  SumBound(1, 1 + std::abs(multiple)));
        differs |= x != reference.out[0];
      }
      EXPECT_TRUE(differs);
    }
  }
}

// A bound that no error can exceed tests nothing: of ordinary numbers it must stay far below the
// output itself.
TEST(DecodeReferenceTest, BoundsAreSmallBesideTheOutput) {
  DecodeCaseSpec spec;
  spec.shape = {.num_qo_heads = 8,
                .num_kv_heads = 2,
                .head_dim = 128,
                .encoding = {.bits_k = 4,
                             .bits_v = 4,
                             .k_group_tokens = 128,
                             .v_group_channels = 128,
                             .rotated = true}};
  spec.requests = {{4, 100}};
  DecodeCase of(spec);
  const DecodeReference reference =
      ComputeDecodeReference(spec.shape, of.ArgsAt(of.memory().data()),
                             std::vector{kCudaCoreArithmetic, kTensorCoreArithmetic});
  const int d = spec.shape.head_dim;
  for (size_t row = 0; row < reference.lse.size(); ++row) {
    const double norm = Norm(std::span(reference.out).subspan(row * d, d));
    const auto allowed = [&](size_t arithmetic) {
      return kDecodeDeviations * reference.bounds[arithmetic].out_deviation[row];
    };
    EXPECT_LE(allowed(0) * 1000, norm) << "head " << row;
    EXPECT_LE(allowed(1) * 40, norm) << "head " << row;
    EXPECT_LE(reference.bounds[0].out_norm[row] * 100, norm) << "head " << row;
    EXPECT_LE(reference.bounds[1].lse[row] * 10, 1) << "head " << row;
  }
}

}  // namespace
}  // namespace pkv
