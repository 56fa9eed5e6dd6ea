#include "worker/batch/cuda_pools.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include <cuda_runtime_api.h>

#include "tests/support/cuda_fixture.h"
#include "tests/support/cuda_tensor.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

// A table of bytes per sequence that a person can check: 32k tokens of llama-3.1-8b.
TEST(CudaPoolsSizeTest, AQuantizedSequenceTakesLessThanAFifthOfFp16) {
  const KvShape shape = {32, 8, 128};
  const CodecParams fp16 = *PresetByName("fp16", shape), two = *PresetByName("default", shape),
                    four = *PresetByName("default4", shape);
  EXPECT_EQ(CudaPools::PageBytes(shape, fp16), 32 * 8 * 128 * 128 * 4);
  const auto sequence = [&](const CodecParams& params) {
    return 256.0 * CudaPools::PageBytes(shape, params) + CudaPools::SlotBytes(shape, params);
  };
  EXPECT_GT(sequence(fp16) / sequence(two), 5.5);
  EXPECT_GT(sequence(fp16) / sequence(four), 3.3);
}

using CudaPoolsTest = CudaTest;

TEST_F(CudaPoolsTest, DropsTheFrontOfTheWindowsOfSomeSlots) {
  const KvShape shape = {2, 3, 64};
  CodecParams params = *PresetByName("default", shape);
  auto pools = CudaPools::Make(shape, params, {3, 4}, stream());
  ASSERT_TRUE(pools.ok()) << pools.status();
  ASSERT_EQ(pools->window_capacity(), 256);
  const size_t elements = size_t(256) * 64 * 3 * 2;
  std::vector<uint16_t> window(elements);
  std::iota(window.begin(), window.end(), 0);
  for (int layer = 0; layer < 2; ++layer) {
    for (int slot = 0; slot < 3; ++slot) {
      ASSERT_EQ(cudaMemcpy(pools->window(layer, slot, 0, 256).k, window.data(), elements * 2,
                           cudaMemcpyHostToDevice),
                cudaSuccess);
    }
  }
  DeviceBuffer slots = OnDevice(std::vector<int32_t>{2, 0}, stream());
  DeviceBuffer counts = OnDevice(std::vector<int32_t>{256, 131}, stream());
  ASSERT_THAT(pools->DropFront(slots.As<int32_t>(), counts.As<int32_t>(), 2, stream()), IsOk());
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (int layer = 0; layer < 2; ++layer) {
    for (const auto& [slot, kept] : {std::pair(0, 3), {1, 0}, {2, 128}}) {
      std::vector<uint16_t> got(elements);
      ASSERT_EQ(cudaMemcpy(got.data(), pools->window(layer, slot, 0, 256).k, elements * 2,
                           cudaMemcpyDeviceToHost),
                cudaSuccess);
      for (int tensor = 0; tensor < 6; ++tensor) {
        for (int i = 0; i < kept * 64; ++i) {
          ASSERT_EQ(got[tensor * 256 * 64 + i], window[tensor * 256 * 64 + 128 * 64 + i])
              << layer << " " << slot << " " << tensor << " " << i;
        }
      }
      if (slot == 1) {
        EXPECT_EQ(got, window);
      }
    }
  }
}

TEST_F(CudaPoolsTest, MoreThanTheDeviceHoldsIsRefused) {
  const KvShape shape = {32, 8, 128};
  const auto pools = CudaPools::Make(shape, *PresetByName("fp16", shape), {4, 1'000'000}, stream());
  EXPECT_THAT(pools, StatusIs(absl::StatusCode::kResourceExhausted, testing::HasSubstr("1000000")));
}

}  // namespace
}  // namespace pkv
