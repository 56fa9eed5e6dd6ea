#include "kernels/device/sm_partition.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <span>
#include <vector>

#include "kernels/device/device_buffer.h"
#include "kernels/device/event.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using SmPartitionTest = CudaTest;

TEST_F(SmPartitionTest, RefusesWhatNoDeviceDividesInto) {
  for (const int num_sms : {-2, 0, 1, 3, 1 << 20}) {
    EXPECT_THAT(SmPartition::Make(num_sms), StatusIs(absl::StatusCode::kInvalidArgument))
        << num_sms;
  }
}

TEST_F(SmPartitionTest, OrdersItsStreamsWithOthersByEvents) {
  auto made = SmPartition::Make(4);
  ASSERT_THAT(made, IsOk());
  const SmPartition partition = *std::move(made);
  EXPECT_EQ(partition.num_sms(), 4);
  const auto confined = partition.MakeStream();
  ASSERT_THAT(confined, IsOk());
  const auto event = Event::Make();
  ASSERT_THAT(event, IsOk());
  constexpr size_t kBytes = size_t{64} << 20;
  auto buffer = DeviceBuffer::Make(kBytes, stream());
  ASSERT_THAT(buffer, IsOk());
  const auto handle = static_cast<cudaStream_t>(confined->handle());
  for (int i = 1; i <= 3; ++i) {
    ASSERT_EQ(cudaMemsetAsync(buffer->data(), 0, kBytes, static_cast<cudaStream_t>(stream())),
              cudaSuccess);
    ASSERT_THAT(event->Record(stream()), IsOk());
    ASSERT_THAT(event->MakeWait(handle), IsOk());
    ASSERT_EQ(cudaMemsetAsync(buffer->data(), i, kBytes, handle), cudaSuccess);
    ASSERT_THAT(event->Record(handle), IsOk());
    ASSERT_THAT(event->MakeWait(stream()), IsOk());
  }
  std::vector<uint8_t> got(kBytes);
  ASSERT_THAT(buffer->CopyToHost(std::as_writable_bytes(std::span(got))), IsOk());
  EXPECT_EQ(got, std::vector<uint8_t>(kBytes, 3));
  EXPECT_THAT(confined->Synchronize(), IsOk());
}

}  // namespace
}  // namespace pkv
