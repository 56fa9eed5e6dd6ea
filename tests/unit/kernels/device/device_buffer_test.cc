#include "kernels/device/device_buffer.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/support/cuda_fixture.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

TEST(DeviceBufferHostTest, EmptyOneOwnsNothing) {
  DeviceBuffer buffer;
  EXPECT_EQ(buffer.data(), nullptr);
  EXPECT_EQ(buffer.size(), 0u);
}

using DeviceBufferTest = CudaTest;

TEST_F(DeviceBufferTest, BytesComeBack) {
  std::vector<std::byte> bytes(100000), back(bytes.size());
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 7);
  const auto buffer = DeviceBuffer::CopyOf(bytes, stream());
  ASSERT_THAT(buffer, IsOk());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 256, 0u);
  ASSERT_THAT(buffer->CopyToHost(back), IsOk());
  EXPECT_EQ(back, bytes);
}

TEST_F(DeviceBufferTest, ZeroBytesOwnNothing) {
  const auto buffer = DeviceBuffer::Make(0, stream());
  ASSERT_THAT(buffer, IsOk());
  EXPECT_EQ(buffer->data(), nullptr);
  EXPECT_THAT(buffer->CopyToHost({}), IsOk());
}

TEST_F(DeviceBufferTest, MovePassesOwnership) {
  auto buffer = DeviceBuffer::Make(64, stream());
  ASSERT_THAT(buffer, IsOk());
  const std::byte* data = buffer->data();
  const DeviceBuffer moved = *std::move(buffer);
  EXPECT_EQ(moved.data(), data);
  EXPECT_EQ(moved.size(), 64u);
}

TEST_F(DeviceBufferTest, MoreThanTheDeviceHasIsRefused) {
  EXPECT_THAT(DeviceBuffer::Make(size_t{1} << 50, stream()),
              StatusIs(absl::StatusCode::kResourceExhausted));
}

}  // namespace
}  // namespace pkv
