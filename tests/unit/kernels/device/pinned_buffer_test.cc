#include "kernels/device/pinned_buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include <cuda_runtime_api.h>

#include "tests/support/cuda_fixture.h"

namespace pkv {
namespace {

using PinnedBufferTest = CudaTest;

TEST_F(PinnedBufferTest, IsPinnedZeroedAndMoves) {
  auto buffer = PinnedBuffer::Make(1000);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  EXPECT_TRUE(std::all_of(buffer->data(), buffer->data() + 1000,
                          [](std::byte b) { return b == std::byte{0}; }));
  cudaPointerAttributes attributes;
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, buffer->data()), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeHost);
  const std::byte* data = buffer->data();
  const PinnedBuffer moved = *std::move(buffer);
  EXPECT_EQ(moved.data(), data);
  EXPECT_EQ(moved.size(), 1000u);
}

TEST_F(PinnedBufferTest, NothingOwnsNothing) {
  const auto buffer = PinnedBuffer::Make(0);
  ASSERT_TRUE(buffer.ok());
  EXPECT_EQ(buffer->data(), nullptr);
}

}  // namespace
}  // namespace pkv
