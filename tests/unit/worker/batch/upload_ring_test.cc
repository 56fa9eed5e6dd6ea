#include "worker/batch/upload_ring.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/device/device_buffer.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using UploadRingTest = CudaTest;

// Many times the ring's size, in pieces that do and do not divide it: nothing is overwritten before
// it was copied.
TEST_F(UploadRingTest, CopiesMoreThanItHoldsInOrder) {
  ThreadPool pool(2);
  auto ring = UploadRing::Make(1 << 12, &pool, stream());
  ASSERT_TRUE(ring.ok()) << ring.status();
  std::vector<std::byte> bytes(300'000);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 7 + i / 256);
  auto to = DeviceBuffer::Make(bytes.size(), stream());
  ASSERT_TRUE(to.ok());
  for (size_t at = 0; at < bytes.size(); at += 1000) {
    ASSERT_THAT(ring->Copy(std::span(bytes).subspan(at, 1000), to->data() + at), IsOk());
  }
  ASSERT_THAT(ring->Flush(), IsOk());
  std::vector<std::byte> got(bytes.size());
  ASSERT_THAT(to->CopyToHost(got), IsOk());
  EXPECT_EQ(got, bytes);
}

TEST_F(UploadRingTest, CopiesRowsBetweenPitches) {
  auto ring = UploadRing::Make(256, nullptr, stream());
  ASSERT_TRUE(ring.ok()) << ring.status();
  constexpr size_t kRows = 50, kFrom = 40, kTo = 64, kRow = 32;
  std::vector<std::byte> bytes(kRows * kFrom);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  auto to = DeviceBuffer::CopyOf(std::vector<std::byte>(kRows * kTo), stream());
  ASSERT_TRUE(to.ok());
  ASSERT_THAT(ring->Copy({bytes.data(), to->data(), kRow, kFrom, kTo, kRows}), IsOk());
  ASSERT_THAT(ring->Flush(), IsOk());
  std::vector<std::byte> got(kRows * kTo);
  ASSERT_THAT(to->CopyToHost(got), IsOk());
  for (size_t i = 0; i < got.size(); ++i) {
    const bool in_row = i % kTo < kRow;
    ASSERT_EQ(got[i], in_row ? bytes[i / kTo * kFrom + i % kTo] : std::byte{0}) << i;
  }
}

TEST_F(UploadRingTest, CopiesWhatIsOnTheDeviceFromThere) {
  auto ring = UploadRing::Make(256, nullptr, stream());
  ASSERT_TRUE(ring.ok()) << ring.status();
  std::vector<std::byte> bytes(10'000);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  const auto from = DeviceBuffer::CopyOf(bytes, stream());
  auto to = DeviceBuffer::Make(bytes.size(), stream());
  ASSERT_TRUE(from.ok() && to.ok());
  ASSERT_THAT(ring->Copy(std::span(from->data(), bytes.size()), to->data(), /*from_device=*/true),
              IsOk());
  std::vector<std::byte> got(bytes.size());
  ASSERT_THAT(to->CopyToHost(got), IsOk());
  EXPECT_EQ(got, bytes);
}

}  // namespace
}  // namespace pkv
