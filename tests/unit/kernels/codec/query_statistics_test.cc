// What Make() and the calls refuse; the numbers are held to references in tests/parity.
#include "pkv/kernels/query_statistics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/codec/query_statistics_backends.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr QueryStatisticsShape kShape = {.num_qo_heads = 8, .num_kv_heads = 2, .head_dim = 64};
alignas(16) uint16_t memory[8];
float lse[1];

TEST(QueryStatisticsTest, RefusesShapesThatAreNone) {
  QueryStatisticsShape shape = kShape;
  shape.num_qo_heads = 7;
  EXPECT_THAT(QueryStatistics::Make(shape, {.device = Device::kCuda}),
              StatusIs(kInvalid, HasSubstr("num_qo_heads 7")));
  shape = kShape;
  shape.head_dim = 96;
  EXPECT_THAT(QueryStatistics::Make(shape, {.device = Device::kCuda}),
              StatusIs(kInvalid, HasSubstr("head_dim 96")));
}

TEST(QueryStatisticsTest, RefusesSpansOutside) {
  EXPECT_THAT(CheckQuerySpan(3, 3), IsOk());
  EXPECT_THAT(CheckQuerySpan(-1, 3), StatusIs(kInvalid, HasSubstr("-1..3")));
  EXPECT_THAT(CheckQuerySpan(4, 3), StatusIs(kInvalid, HasSubstr("4..3")));
  EXPECT_THAT(CheckQuerySpan(0, int64_t{1} << 31), StatusIs(kInvalid, HasSubstr("2147483648")));
}

TEST(QueryStatisticsTest, TakesTheChunkThatComesNext) {
  const QueryChunk chunk = {
      .first_token = 5, .num_queries = 3, .q = memory, .q_stride = 512, .lse = lse};
  EXPECT_THAT(CheckQueryChunk(kShape, chunk, 5, 8), IsOk());
  EXPECT_THAT(CheckQueryChunk(kShape, chunk, 4, 8), StatusIs(kInvalid, HasSubstr("is at 4")));
  EXPECT_THAT(CheckQueryChunk(kShape, chunk, 5, 7),
              StatusIs(kInvalid, HasSubstr("num_queries 3 not in 0..2")));
}

TEST(QueryStatisticsTest, RefusesPointersAndStridesOfAChunk) {
  const QueryChunk good = {
      .first_token = 0, .num_queries = 1, .q = memory, .q_stride = 512, .lse = lse};
  QueryChunk chunk = good;
  chunk.q = memory + 1;
  EXPECT_THAT(CheckQueryChunk(kShape, chunk, 0, 8),
              StatusIs(kInvalid, HasSubstr("q is 2 bytes past")));
  chunk = good;
  chunk.q_stride = 504;
  EXPECT_THAT(CheckQueryChunk(kShape, chunk, 0, 8), StatusIs(kInvalid, HasSubstr("q_stride 504")));
  chunk = good;
  chunk.lse = nullptr;
  EXPECT_THAT(CheckQueryChunk(kShape, chunk, 0, 8), IsOk());
}

TEST(QueryStatisticsTest, RefusesKeysOfAnotherShape) {
  const KvTensorView good = {memory, nullptr, 2, 4, 64, 256};
  EXPECT_THAT(CheckSampledKeys(kShape, good, 0), IsOk());
  KvTensorView kv = good;
  kv.head_dim = 128;
  EXPECT_THAT(CheckSampledKeys(kShape, kv, 0), StatusIs(kInvalid, HasSubstr("2 heads of 128")));
  kv = good;
  kv.head_stride = 248;
  EXPECT_THAT(CheckSampledKeys(kShape, kv, 0), StatusIs(kInvalid, HasSubstr("head_stride")));
  EXPECT_THAT(CheckImportance(good, lse), IsOk());
  EXPECT_THAT(CheckImportance(good, nullptr), StatusIs(kInvalid, HasSubstr("importance is null")));
}

}  // namespace
}  // namespace pkv
