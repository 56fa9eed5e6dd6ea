// Decode attention on numbers that need no rounding: equality with the one right answer.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <thread>

#include "proto/base/thread_pool.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/decode_device.h"
#include "tests/support/decode_lattice.h"

namespace pkv {
namespace {

struct Case {
  DecodeKernel kernel = DecodeKernel::kCudaCore;
  int bits_k = 2, bits_v = 2;
  int head_dim = 128;
  int group = 128;
  bool fine = false, rotated = false;
  int num_patterns = 0;
  int heads_per_kv = 4;
  int num_sinks = 16;
  QueryType query_type = QueryType::kFloat16;
};

std::ostream& operator<<(std::ostream& os, const Case& c) {
  return os << NameOf(c.kernel) << " K" << c.bits_k << "V" << c.bits_v << " head_dim " << c.head_dim
            << " group " << c.group << (c.fine ? " fine" : "") << (c.rotated ? " rotated" : "")
            << " patterns " << c.num_patterns << " G " << c.heads_per_kv << " sinks " << c.num_sinks
            << (c.query_type == QueryType::kFloat16 ? " fp16" : " bf16");
}

DecodeCaseSpec SpecOf(const Case& c, int batch, DecodeRequest request) {
  DecodeCaseSpec spec;
  spec.shape = {.num_qo_heads = 2 * c.heads_per_kv,
                .num_kv_heads = 2,
                .head_dim = c.head_dim,
                .encoding = {},
                .num_sinks = c.bits_k == 16 ? 0 : c.num_sinks,
                .query_type = c.query_type,
                .kernel = c.kernel};
  if (c.bits_k != 16) {
    spec.shape.encoding = {.bits_k = c.bits_k,
                           .bits_v = c.bits_v,
                           .k_group_tokens = c.group,
                           .v_group_channels = std::min(c.group, c.head_dim),
                           .has_patterns = c.num_patterns > 0,
                           .k_fine_tokens = c.fine ? kFineTokens : 0,
                           .rotated = c.rotated};
    request.num_patterns_k = request.num_patterns_v = c.num_patterns;
    spec.bank_capacity = c.num_patterns;
  }
  spec.requests.assign(batch, request);
  spec.shares = false;
  spec.sm_scale = 1;
  return spec;
}

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const DecodeKernel kernel : kDecodeKernels) {
    for (const int head_dim : {64, 128}) {
      for (const int bits : {2, 4}) {
        for (const int group : {32, 64, 128}) {
          for (const bool rotated : {false, true}) {
            cases.push_back(
                {.kernel = kernel,
                 .bits_k = bits,
                 .bits_v = bits,
                 .head_dim = head_dim,
                 .group = group,
                 .fine = bits == 2 && group == 128,
                 .rotated = rotated,
                 .num_patterns = group == 32 ? 0 : group,
                 .heads_per_kv = group == 64 ? 8 : 4,
                 .num_sinks = group == 64 ? 64 : 16,
                 .query_type = group == 64 ? QueryType::kBfloat16 : QueryType::kFloat16});
          }
        }
      }
      cases.push_back({.kernel = kernel, .bits_k = 16, .bits_v = 16, .head_dim = head_dim});
      cases.push_back({.kernel = kernel, .head_dim = head_dim, .num_patterns = 255});
      for (const int heads : {1, 2, 3, 5, 6, 7, 12}) {
        cases.push_back({.kernel = kernel, .head_dim = head_dim, .heads_per_kv = heads});
      }
      cases.push_back({.kernel = kernel, .bits_k = 4, .head_dim = head_dim});
      cases.push_back({.kernel = kernel, .bits_v = 4, .head_dim = head_dim, .fine = true});
      cases.push_back({.kernel = kernel, .head_dim = head_dim, .group = 32, .fine = true});
    }
  }
  std::erase_if(cases, [](const Case& c) { return !TakesShape(c.kernel, SpecOf(c, 1, {}).shape); });
  return cases;
}

template <typename Keep>
std::vector<Case> CasesThat(const Keep& keep) {
  std::vector<Case> cases = AllCases();
  std::erase_if(cases, [&](const Case& c) { return !keep(c); });
  return cases;
}

class DecodeAttentionExactTest : public CudaTest, public testing::WithParamInterface<Case> {
 protected:
  static constexpr uint64_t kSeed = 7;

  // V rotated back by 1 / sqrt(128) is not exact.
  static bool IsExact() { return !GetParam().rotated || GetParam().head_dim == 64; }

  static bool IsNear(double value, double want) {
    return std::abs(value - want) <= SumBound(1, 1 + std::abs(want));
  }
  static float Rounded(double value, const DecodeCase& of) {
    const auto x = static_cast<float>(value);
    if (of.spec().shape.query_type == QueryType::kFloat16) {
      return Float16ToFloat(FloatToFloat16(x));
    }
    // Halves of ulps go to even.
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    return std::bit_cast<float>((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u);
  }

  // `unit`: a power of two of which every right output is a multiple.
  void ExpectExactly(DecodeCase& of, double unit) {
    ThreadPool pool(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
    const DecodeCheck check(of, &pool);
    const auto attention = MakeDecode(of.spec().shape, GetParam().kernel, stream());
    const auto after = RunOnce(*attention, of, stream());
    ASSERT_TRUE(after.ok()) << after.status();
    ASSERT_EQ(check.Problem(*after, GetParam().kernel, /*is_random=*/false), "");
    if (!IsExact()) return;
    const DecodeOutput got(of, *after);
    const size_t d = of.spec().shape.head_dim, heads = of.spec().shape.num_qo_heads;
    for (size_t i = 0; i < got.out.size(); ++i) {
      // The case does what it was made for.
      const double want = std::nearbyint(check.reference().out[i] / unit) * unit;
      ASSERT_TRUE(IsNear(check.reference().out[i], want)) << "reference of value " << i;
      ASSERT_EQ(got.out[i], Rounded(want, of))
          << "request " << i / d / heads << " head " << i / d % heads << " channel " << i % d;
    }
  }
};

TEST_P(DecodeAttentionExactTest, OneCodeFarAboveReturnsThatTokensV) {
  DecodeCase of(SpecOf(GetParam(), 12, {.num_blocks = 3, .num_window_tokens = 33}));
  LatticeValues(of, kSeed);
  OneHotKeys(of, kSeed, /*by_pattern=*/false);
  ExpectExactly(of, 0x1p-4);
}

using DecodeAttentionExactPatternTest = DecodeAttentionExactTest;

TEST_P(DecodeAttentionExactPatternTest, OnePatternFarAboveReturnsThatTokensV) {
  DecodeCase of(SpecOf(GetParam(), 20, {.num_blocks = 2, .num_window_tokens = 1}));
  LatticeValues(of, kSeed);
  OneHotKeys(of, kSeed, /*by_pattern=*/true);
  ExpectExactly(of, 0x1p-4);
}

// 512 equal scores: sums of small integers, and a quotient by a power of two.
TEST_P(DecodeAttentionExactTest, EqualScoresReturnTheMeanOfV) {
  DecodeCaseSpec spec = SpecOf(GetParam(), 3, {.num_blocks = 3, .num_window_tokens = 128});
  spec.q_width = 0;
  spec.has_token = false;
  DecodeCase of(spec);
  LatticeValues(of, kSeed);
  ExpectExactly(of, 0x1p-13);
}

// Each part of V alone: zero points, scales, patterns.
using DecodeAttentionExactCodesTest = DecodeAttentionExactTest;

TEST_P(DecodeAttentionExactCodesTest, EqualScoresReturnTheMeanOfEachPartOfV) {
  enum Part { kZeros, kCodes, kPatterns };
  for (const Part part : {kZeros, kCodes, kPatterns}) {
    SCOPED_TRACE(part);
    DecodeCaseSpec spec = SpecOf(GetParam(), 2, {.num_blocks = 4});
    spec.q_width = 0;
    spec.has_token = false;
    DecodeCase of(spec);
    LatticeValues(of, kSeed);
    const PayloadLayout& layout = of.layout();
    for (int r = 0; r < of.batch(); ++r) {
      for (int block = 0; block < 4; ++block) {
        for (int head = 0; head < 2; ++head) {
          PageOfHead page = of.page(r, block, head);
          const int64_t halves = (layout.v_zeros - layout.v_scales) / 2;
          if (part != kCodes) std::fill_n(page.Halves(layout.v_scales), halves, uint16_t{0});
          if (part != kZeros) std::fill_n(page.Halves(layout.v_zeros), halves, uint16_t{0});
          for (int slot = 0; slot < kBlockTokens; ++slot) {
            if (part == kPatterns || GetParam().num_patterns == 0) break;
            page.v_id(slot) = std::byte{kRawPatternId};
          }
        }
      }
    }
    ExpectExactly(of, 0x1p-13);
    if (HasFatalFailure()) return;
  }
}

// Weights that sum to 1 but for rounding: on CUDA cores that is far less than half an ulp of the
// output; the tensor-core kernel rounds weights, and is held to its bound.
using DecodeAttentionExactPlainTest = DecodeAttentionExactTest;

TEST_P(DecodeAttentionExactPlainTest, ConstantVComesBack) {
  constexpr uint16_t kValue = 0x3900;  // 0.625
  DecodeCase of(SpecOf(GetParam(), 3, {.num_blocks = 3, .num_window_tokens = 77}));
  const int d = GetParam().head_dim;
  for (int r = 0; r < of.batch(); ++r) {
    for (int head = 0; head < 2; ++head) {
      const auto set = [&](std::span<uint16_t> row) { std::fill(row.begin(), row.end(), kValue); };
      for (int t = 0; t < 77; ++t) set(of.window_row(true, r, head, t));
      set(of.token_row(true, r, head));
      for (int s = 0; s < of.spec().shape.num_sinks; ++s) set(of.sink_row(true, r, head, s));
      for (int block = 0; block < 3; ++block) {
        PageOfHead page = of.page(r, block, head);
        if (GetParam().bits_v == 16) {
          set({page.Halves(of.layout().v_codes), size_t{kBlockTokens} * d});
          continue;
        }
        const int64_t halves = (of.layout().v_zeros - of.layout().v_scales) / 2;
        std::fill_n(page.Halves(of.layout().v_scales), halves, uint16_t{0});
        std::fill_n(page.Halves(of.layout().v_zeros), halves, kValue);
        for (int slot = 0; slot < kBlockTokens && GetParam().num_patterns > 0; ++slot) {
          page.v_id(slot) = std::byte{kRawPatternId};
        }
      }
    }
  }
  const DecodeCheck check(of);
  const auto attention = MakeDecode(of.spec().shape, GetParam().kernel, stream());
  const auto after = RunOnce(*attention, of, stream());
  ASSERT_TRUE(after.ok()) << after.status();
  ASSERT_EQ(check.Problem(*after, GetParam().kernel, /*is_random=*/false), "");
  if (GetParam().kernel != DecodeKernel::kCudaCore) return;
  for (const float x : DecodeOutput(of, *after).out) ASSERT_EQ(x, Float16ToFloat(kValue));
}

// "TensorCoreK2V2d128g128FineRotatedP128G4": what a filter can name.
std::string NameOfCase(const testing::TestParamInfo<Case>& info) {
  const Case& c = info.param;
  return absl::StrCat(NameOf(c.kernel), "K", c.bits_k, "V", c.bits_v, "d", c.head_dim, "g", c.group,
                      c.fine ? "Fine" : "", c.rotated ? "Rotated" : "", "P", c.num_patterns, "G",
                      c.heads_per_kv);
}

INSTANTIATE_TEST_SUITE_P(All, DecodeAttentionExactTest, testing::ValuesIn(AllCases()), NameOfCase);
INSTANTIATE_TEST_SUITE_P(
    All, DecodeAttentionExactPatternTest,
    testing::ValuesIn(CasesThat([](const Case& c) { return c.num_patterns > 0; })), NameOfCase);
INSTANTIATE_TEST_SUITE_P(All, DecodeAttentionExactCodesTest,
                         testing::ValuesIn(CasesThat([](const Case& c) { return c.bits_k != 16; })),
                         NameOfCase);
INSTANTIATE_TEST_SUITE_P(All, DecodeAttentionExactPlainTest,
                         testing::ValuesIn(CasesThat([](const Case& c) { return !c.rotated; })),
                         NameOfCase);

}  // namespace
}  // namespace pkv
