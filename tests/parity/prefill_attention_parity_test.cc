// Prefill attention on the device against fp64 attention over the same numbers.
#include <gtest/gtest.h>

#include <memory>

#include "tests/support/cuda_fixture.h"
#include "tests/support/prefill_case.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

constexpr QueryType kHalf = QueryType::kFloat16, kBfloat = QueryType::kBfloat16;

class PrefillAttentionTest : public CudaTest {
 protected:
  ComputeContext ctx() const { return {.device = Device::kCuda, .stream = stream()}; }

  std::unique_ptr<PrefillAttention> Make(const PrefillAttentionShape& shape) const {
    auto made = PrefillAttention::Make(shape, ctx());
    PKV_CHECK(made.ok(), made.status().ToString());
    return *std::move(made);
  }
  PrefillOutput Run(const PrefillCase& of) const {
    return RunPrefill(of, *Make(of.spec().shape), ctx());
  }
};

class PrefillParityTest : public PrefillAttentionTest,
                          public testing::WithParamInterface<PrefillSpec> {};

TEST_P(PrefillParityTest, StaysWithinItsErrorBound) {
  const PrefillCase of(GetParam());
  const PrefillOutput got = Run(of);
  PrefillCheck check(of, got);
  EXPECT_EQ(check.Problem(), "");
  RecordProperty("largest_of_bound", std::to_string(check.largest_of_bound()));
  RecordProperty("frobenius", std::to_string(check.frobenius()));
}

INSTANTIATE_TEST_SUITE_P(
    All, PrefillParityTest,
    testing::Values(
        // {query heads, kv heads, head_dim, type of q, of out}, queries, first token
        PrefillSpec{{1, 1, 128, kHalf, kHalf}, 1, 0}, PrefillSpec{{1, 1, 64, kHalf, kHalf}, 1, 0},
        PrefillSpec{{4, 1, 128, kHalf, kHalf}, 3, 0},
        PrefillSpec{{2, 2, 128, kHalf, kHalf}, 129, 0},
        PrefillSpec{{2, 1, 128, kHalf, kHalf}, 127, 1},
        PrefillSpec{{8, 2, 128, kHalf, kHalf}, 300, 0},
        PrefillSpec{{8, 2, 128, kBfloat, kBfloat}, 299, 257},
        PrefillSpec{{8, 2, 128, kBfloat, kHalf}, 45, 511},
        PrefillSpec{{7, 1, 128, kHalf, kHalf}, 171, 600},
        PrefillSpec{{7, 1, 64, kBfloat, kHalf}, 75, 128},
        PrefillSpec{{8, 1, 128, kHalf, kBfloat}, 65, 383},
        PrefillSpec{{8, 1, 64, kHalf, kHalf}, 33, 1000},
        PrefillSpec{{4, 4, 64, kHalf, kHalf}, 257, 300},
        PrefillSpec{{6, 3, 64, kBfloat, kBfloat}, 200, 77},
        PrefillSpec{{12, 1, 128, kHalf, kHalf}, 31, 200},
        PrefillSpec{{1, 1, 128, kHalf, kHalf}, 1, 2047},
        PrefillSpec{{1, 1, 128, kBfloat, kHalf}, 259, 4000}));

// Large queries have sharp weights: the largest score changes from tile to tile.
TEST_F(PrefillAttentionTest, StaysWithinItsErrorBoundWithSharpWeights) {
  for (const QueryType type : {kHalf, kBfloat}) {
    const PrefillCase of({{4, 1, 128, type, kHalf}, 97, 900, 16, 3});
    const PrefillOutput got = Run(of);
    PrefillCheck check(of, got);
    EXPECT_EQ(check.Problem(), "");
  }
}

TEST_F(PrefillAttentionTest, GivesTheSameBitsHoweverThePromptIsCut) {
  for (const int head_dim : {64, 128}) {
    const PrefillCase of({{4, 2, head_dim, kBfloat, kBfloat}, 700, 33});
    const auto attention = Make(of.spec().shape);
    const PrefillOutput whole = RunPrefill(of, *attention, ctx());
    PrefillOutput parts;
    for (int begin = 0; begin < 700;) {
      const int end = std::min(begin + 1 + begin % 251, 700);
      const PrefillOutput part = RunPrefill(of, *attention, ctx(), begin, end);
      parts.out.insert(parts.out.end(), part.out.begin(), part.out.end());
      parts.lse.insert(parts.lse.end(), part.lse.begin(), part.lse.end());
      begin = end;
    }
    EXPECT_EQ(whole.out, parts.out);
    EXPECT_EQ(whole.lse, parts.lse);
  }
}

// fp16 reaches from 2^-24 to 2^16, bf16 from 2^-133 to 2^128.
TEST_F(PrefillAttentionTest, APowerOfTwoInBfloat16QueriesIsTakenBackExactly) {
  PrefillCase of({{4, 2, 128, kBfloat, kHalf}, 130, 70});
  const auto attention = Make(of.spec().shape);
  const PrefillOutput plain = RunPrefill(of, *attention, ctx());
  for (const int power : {-60, 60}) {
    PrefillCase scaled = of;
    for (int i = 0; i < of.spec().num_queries; ++i) {
      for (int j = 0; j < of.spec().row(); ++j) {
        uint16_t& x = scaled.q()[i * of.q_stride() + j];
        x = ToBits(std::ldexp(FromBits(x, kBfloat), power), kBfloat);
      }
    }
    const PrefillOutput got =
        RunPrefill(scaled, *attention, ctx(), 0, of.spec().num_queries, std::ldexp(1.0f, -power));
    EXPECT_EQ(plain.out, got.out);
    EXPECT_EQ(plain.lse, got.lse);
  }
}

TEST_F(PrefillAttentionTest, AQueryThatIsNotFiniteSpoilsItsOwnRowOnly) {
  const PrefillCase of({{4, 2, 128, kHalf, kHalf}, 150, 20});
  const auto attention = Make(of.spec().shape);
  const PrefillOutput plain = RunPrefill(of, *attention, ctx());
  constexpr int kQuery = 77, kHead = 1, kDim = 128;
  for (const uint16_t value : {0x7c00, 0xfc00, 0x7e00}) {  // infinities, NaN
    PrefillCase spoilt = of;
    spoilt.q()[kQuery * of.q_stride() + kHead * kDim + 5] = value;
    const PrefillOutput got = RunPrefill(spoilt, *attention, ctx());
    for (int i = 0; i < of.spec().num_queries; ++i) {
      for (int j = 0; j < of.spec().row(); ++j) {
        const size_t at = i * of.out_stride() + j;
        if (i == kQuery && j / kDim == kHead) {
          ASSERT_TRUE(std::isnan(FromBits(got.out[at], kHalf))) << j;
        } else {
          ASSERT_EQ(got.out[at], plain.out[at]) << i << " " << j;
        }
      }
    }
  }
}

TEST_F(PrefillAttentionTest, RunsWithoutLseAndWithoutQueries) {
  const PrefillCase of({{2, 1, 64, kHalf, kHalf}, 40, 5});
  const auto attention = Make(of.spec().shape);
  const PrefillOutput with = RunPrefill(of, *attention, ctx());
  DeviceBuffer q = OnDevice(of.q(), stream()), out = OnDevice(with.out, stream());
  CudaTensor tokens(of.kv(), stream());
  PrefillAttentionArgs args = {.num_queries = 40,
                               .sm_scale = 0.125f,
                               .q = q.data(),
                               .q_stride = of.q_stride(),
                               .kv = KvTensorView(tokens.view()).Tokens(0, 45),
                               .out = out.data(),
                               .out_stride = of.out_stride()};
  EXPECT_THAT(attention->Run(args, ctx()), IsOk());
  args.num_queries = 0;
  EXPECT_THAT(attention->Run(args, ctx()), IsOk());
  std::vector<uint16_t> got(with.out.size());
  ASSERT_THAT(out.CopyToHost(std::as_writable_bytes(std::span(got))), IsOk());
  EXPECT_EQ(got, with.out);
}

}  // namespace
}  // namespace pkv
