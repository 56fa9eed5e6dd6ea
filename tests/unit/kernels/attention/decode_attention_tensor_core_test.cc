// What is particular to the tensor-core kernel; tests/parity holds its numbers to the reference.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "pkv/kernels/codec_params.h"
#include "pkv/kernels/decode_attention.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/decode_device.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

DecodeAttentionShape ShapeOf(const std::string& preset, int head_dim, int heads_per_kv) {
  const CodecParams params = *PresetByName(preset, {1, 2, head_dim});
  return {.num_qo_heads = 2 * heads_per_kv,
          .num_kv_heads = 2,
          .head_dim = head_dim,
          .encoding = params.encoding,
          .num_sinks = params.num_sinks,
          .kernel = DecodeKernel::kTensorCore};
}

TEST(DecodeAttentionTensorCoreHostTest, FactoryWantsADeviceOrGivesAKernel) {
  const auto attention =
      DecodeAttention::Make(ShapeOf("default", 128, 4), {.device = Device::kCuda});
  if (attention.ok()) {
    EXPECT_NE(*attention, nullptr);
  } else {
    EXPECT_THAT(attention, StatusIs(absl::StatusCode::kFailedPrecondition));
  }
}

using DecodeAttentionTensorCoreTest = CudaTest;

TEST_F(DecodeAttentionTensorCoreTest, TakesEveryPreset) {
  const ComputeContext ctx = {.device = Device::kCuda, .stream = stream()};
  for (const std::string& preset : PresetNames()) {
    for (const int head_dim : {64, 128}) {
      for (int heads = 1; heads <= 8; ++heads) {
        EXPECT_THAT(DecodeAttention::Make(ShapeOf(preset, head_dim, heads), ctx), IsOk())
            << preset << " head_dim " << head_dim << " heads " << heads;
      }
    }
  }
}

TEST_F(DecodeAttentionTensorCoreTest, AnEmptyBatchIsNothingToDo) {
  const ComputeContext ctx = {.device = Device::kCuda, .stream = stream()};
  const auto attention = DecodeAttention::Make(ShapeOf("default", 128, 4), ctx);
  ASSERT_THAT(attention, IsOk());
  EXPECT_THAT((*attention)->Run({}, ctx), IsOk());
  EXPECT_THAT((*attention)->Plan({}, ctx), IsOk());
}

TEST_F(DecodeAttentionTensorCoreTest, RefusesAPlanThatWasNeverMade) {
  const DecodeCase of({.shape = ShapeOf("pkv2", 128, 4), .requests = {{.num_window_tokens = 3}}});
  DecodeOnDevice device(of, stream());
  const auto attention = MakeDecode(of.spec().shape, DecodeKernel::kTensorCore, stream());
  EXPECT_THAT(device.Run(*attention, /*is_planned=*/true),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("Plan()")));
  EXPECT_THAT(device.Plan(*attention), IsOk());
  EXPECT_THAT(device.Run(*attention, /*is_planned=*/true), IsOk());
}

}  // namespace
}  // namespace pkv
