// What Make() and Run() refuse; the numbers are held to the reference in tests/parity.
#include "pkv/kernels/prefill_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/attention/prefill_attention_backends.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr PrefillAttentionShape kShape = {.num_qo_heads = 8, .num_kv_heads = 2, .head_dim = 64};
alignas(16) uint16_t memory[16];

PrefillAttentionArgs ValidArgs() {
  return {.num_queries = 3,
          .sm_scale = 0.125f,
          .q = memory,
          .q_stride = 520,
          .kv = {memory, memory, 2, 5, 64, 320},
          .out = memory,
          .out_stride = 512};
}

TEST(PrefillAttentionHostTest, RefusesShapesThatAreNone) {
  PrefillAttentionShape shape = kShape;
  shape.num_qo_heads = 9;
  EXPECT_THAT(PrefillAttention::Make(shape, {.device = Device::kCuda}),
              StatusIs(kInvalid, HasSubstr("num_qo_heads 9 is no positive multiple")));
  shape = kShape;
  shape.head_dim = 96;
  EXPECT_THAT(PrefillAttention::Make(shape, {.device = Device::kCuda}),
              StatusIs(kInvalid, HasSubstr("head_dim 96")));
}

TEST(PrefillAttentionHostTest, FactoryWantsADeviceOrGivesAKernel) {
  const auto attention = PrefillAttention::Make(kShape, {.device = Device::kCuda});
  if (attention.ok()) {
    EXPECT_NE(*attention, nullptr);
  } else {
    EXPECT_TRUE(absl::IsFailedPrecondition(attention.status()) ||
                absl::IsUnimplemented(attention.status()))
        << attention.status();
  }
}

struct BadArgs {
  void (*damage)(PrefillAttentionArgs&);
  const char* message;
};

class PrefillArgsTest : public testing::TestWithParam<BadArgs> {};

TEST_P(PrefillArgsTest, AreRefusedWithTheirValueAndLimit) {
  PrefillAttentionArgs args = ValidArgs();
  ASSERT_THAT(CheckPrefillArgs(kShape, args), IsOk());
  GetParam().damage(args);
  EXPECT_THAT(CheckPrefillArgs(kShape, args), StatusIs(kInvalid, HasSubstr(GetParam().message)));
}

INSTANTIATE_TEST_SUITE_P(
    All, PrefillArgsTest,
    testing::Values(
        BadArgs{[](auto& a) { a.num_queries = -1; }, "num_queries -1 is negative"},
        BadArgs{[](auto& a) { a.num_queries = 6; }, "kv.num_tokens 5 is below num_queries 6"},
        BadArgs{[](auto& a) { a.sm_scale = 0; }, "sm_scale 0"},
        BadArgs{[](auto& a) { a.sm_scale = NAN; }, "sm_scale nan"},
        BadArgs{[](auto& a) { a.q = nullptr; }, "q is null"},
        BadArgs{[](auto& a) { a.q = memory + 4; }, "q is 8 bytes past a multiple of 16"},
        BadArgs{[](auto& a) { a.q_stride = 504; }, "q_stride 504 is below 512"},
        BadArgs{[](auto& a) { a.q_stride = 516; }, "q_stride 516"},
        BadArgs{[](auto& a) { a.out = nullptr; }, "out is null"},
        BadArgs{[](auto& a) { a.out_stride = 0; }, "out_stride 0 is below 512"},
        BadArgs{[](auto& a) { a.kv.k = nullptr; }, "kv.k is null"},
        BadArgs{[](auto& a) { a.kv.v = memory + 1; }, "kv.v is 2 bytes past"},
        BadArgs{[](auto& a) { a.kv.num_kv_heads = 1; }, "kv has 1 heads of 64, not 2 of 64"},
        BadArgs{[](auto& a) { a.kv.head_stride = 312; }, "kv.head_stride 312 is below 320"}));

}  // namespace
}  // namespace pkv
