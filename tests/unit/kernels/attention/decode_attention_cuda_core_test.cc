// What is particular to the CUDA-core kernel; tests/parity holds its numbers to the reference.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "pkv/kernels/decode_attention.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/cuda_tensor.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

constexpr int kHeads = 9, kDim = 64, kCapacity = 2;  // more heads than the tensor-core kernel takes

DecodeAttentionShape Shape() {
  return {.num_qo_heads = kHeads,
          .num_kv_heads = 1,
          .head_dim = kDim,
          .encoding = {},
          .kernel = DecodeKernel::kCudaCore};
}

TEST(DecodeAttentionCudaCoreHostTest, FactoryWantsADeviceOrGivesAKernel) {
  const auto attention = DecodeAttention::Make(Shape(), {.device = Device::kCuda});
  if (attention.ok()) {
    EXPECT_NE(*attention, nullptr);
  } else {
    EXPECT_THAT(attention, StatusIs(absl::StatusCode::kFailedPrecondition));
  }
}

using DecodeAttentionCudaCoreTest = CudaTest;

TEST_F(DecodeAttentionCudaCoreTest, OneWindowTokenReturnsItsVAndNoneReturnsZero) {
  constexpr uint16_t kOne = 0x3c00;
  constexpr int kBatch = 2;
  constexpr size_t kRow = size_t{kHeads} * kDim;
  std::vector<uint16_t> windows(size_t{kBatch} * 2 * kCapacity * kDim, kOne), want(kDim);
  for (int j = 0; j < kDim; ++j) {
    want[j] = FloatToFloat16(static_cast<float>(j));
    windows[kCapacity * kDim + j] = want[j];  // V of slot 0 of window 0
  }
  const std::vector<int32_t> num_blocks = {0, 0}, ids = {0, 1}, num_tokens = {1, 0};
  DeviceBuffer q = OnDevice(std::vector<uint16_t>(kBatch * kRow, kOne), stream());
  DeviceBuffer window_pool = OnDevice(windows, stream());
  DeviceBuffer none = OnDevice(num_blocks, stream()), window_ids = OnDevice(ids, stream());
  DeviceBuffer lengths = OnDevice(num_tokens, stream());
  std::vector<uint16_t> out(kBatch * kRow, 0xffff);
  std::vector<float> lse(kBatch * kHeads, std::nanf(""));
  DeviceBuffer out_device = OnDevice(out, stream()), lse_device = OnDevice(lse, stream());
  const ComputeContext ctx = {.device = Device::kCuda, .stream = stream()};
  const auto attention = DecodeAttention::Make(Shape(), ctx);
  ASSERT_THAT(attention, IsOk());
  const DecodeAttentionArgs args = {.batch = kBatch,
                                    .sm_scale = 1.0f / kDim,
                                    .q = q.data(),
                                    .out = out_device.data(),
                                    .lse = lse_device.As<float>(),
                                    .pages = q.data(),
                                    .page_stride = int64_t{4} * kBlockTokens * kDim,
                                    .block_table = none.As<int32_t>(),
                                    .num_blocks = none.As<int32_t>(),
                                    .windows = window_pool.As<uint16_t>(),
                                    .window_stride = 2 * kCapacity * kDim,
                                    .window_capacity = kCapacity,
                                    .window_ids = window_ids.As<int32_t>(),
                                    .num_window_tokens = lengths.As<int32_t>()};
  ASSERT_THAT((*attention)->Run(args, ctx), IsOk());
  ASSERT_THAT(out_device.CopyToHost(std::as_writable_bytes(std::span(out))), IsOk());
  ASSERT_THAT(lse_device.CopyToHost(std::as_writable_bytes(std::span(lse))), IsOk());
  for (size_t i = 0; i < kRow; ++i) {
    ASSERT_EQ(out[i], want[i % kDim]) << "element " << i;
    ASSERT_EQ(out[kRow + i], 0) << "element " << i;
  }
  for (int head = 0; head < kHeads; ++head) {
    EXPECT_EQ(lse[head], 1.0f);  // q . k / head_dim, of ones
    EXPECT_EQ(lse[kHeads + head], -INFINITY);
  }
}

}  // namespace
}  // namespace pkv
