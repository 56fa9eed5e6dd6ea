#include "kernels/device/stream.h"

#include <gtest/gtest.h>

#include "tests/support/cuda_fixture.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using StreamTest = CudaTest;

TEST_F(StreamTest, SynchronizesWithoutWork) {
  const auto made = Stream::Make();
  ASSERT_THAT(made, IsOk());
  EXPECT_THAT(made->Synchronize(), IsOk());
}

TEST_F(StreamTest, MovePassesOwnership) {
  auto made = Stream::Make();
  ASSERT_THAT(made, IsOk());
  void* const handle = made->handle();
  const Stream moved = *std::move(made);
  EXPECT_EQ(moved.handle(), handle);
  EXPECT_THAT(moved.Synchronize(), IsOk());
}

}  // namespace
}  // namespace pkv
