#include "kernels/device/event.h"

#include <gtest/gtest.h>

#include <utility>

#include <cuda_runtime_api.h>

#include "kernels/device/device_buffer.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using EventTest = CudaTest;

TEST_F(EventTest, OrdersTwoStreams) {
  auto event = Event::Make();
  ASSERT_TRUE(event.ok()) << event.status();
  EXPECT_THAT(event->Synchronize(), IsOk());  // never recorded: passed
  auto other = Stream::Make();
  ASSERT_TRUE(other.ok()) << other.status();
  constexpr size_t kBytes = size_t{256} << 20;
  auto buffer = DeviceBuffer::Make(kBytes, stream());
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  ASSERT_EQ(cudaStreamSynchronize(static_cast<cudaStream_t>(stream())), cudaSuccess);
  const Event moved = *std::move(event);
  // Many passes over the memory, then its last byte by the other stream, which must come after.
  for (int i = 0; i < 20; ++i) {
    ASSERT_EQ(cudaMemsetAsync(buffer->data(), 1 + i, kBytes, static_cast<cudaStream_t>(stream())),
              cudaSuccess);
  }
  ASSERT_THAT(moved.Record(stream()), IsOk());
  ASSERT_THAT(moved.MakeWait(other->handle()), IsOk());
  std::byte last{};
  ASSERT_EQ(cudaMemcpyAsync(&last, buffer->data() + kBytes - 1, 1, cudaMemcpyDeviceToHost,
                            static_cast<cudaStream_t>(other->handle())),
            cudaSuccess);
  ASSERT_THAT(other->Synchronize(), IsOk());
  EXPECT_EQ(last, std::byte{20});
  EXPECT_THAT(moved.Synchronize(), IsOk());
}

}  // namespace
}  // namespace pkv
