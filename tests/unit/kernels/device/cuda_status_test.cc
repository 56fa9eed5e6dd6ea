#include "kernels/device/cuda_status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(CudaStatusTest, SuccessIsOk) { EXPECT_THAT(CudaStatus(cudaSuccess, "call"), IsOk()); }

TEST(CudaStatusTest, CodeSaysWhatTheCallerShouldDo) {
  EXPECT_THAT(CudaStatus(cudaErrorMemoryAllocation, "allocate"),
              StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(CudaStatus(cudaErrorNoDevice, "start"),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(CudaStatus(cudaErrorIllegalAddress, "encode"), StatusIs(absl::StatusCode::kInternal));
}

TEST(CudaStatusTest, MessageNamesCallAndError) {
  EXPECT_THAT(CudaStatus(cudaErrorIllegalAddress, "encode"),
              StatusIs(absl::StatusCode::kInternal,
                       AllOf(HasSubstr("encode"), HasSubstr("cudaErrorIllegalAddress"))));
}

}  // namespace
}  // namespace pkv
