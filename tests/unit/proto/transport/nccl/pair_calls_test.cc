#include "proto/transport/nccl/pair_calls.h"

#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

// What each machine and build can say: two GPUs are tests/gpu/pair.py's.
TEST(PairCallsTest, ABuildWithoutNcclSaysSoAndADeviceThatIsNotThereIsRefused) {
  const auto missing =
      NcclVersion() == 0 ? absl::StatusCode::kUnimplemented : absl::StatusCode::kFailedPrecondition;
  EXPECT_THAT(MakePairCalls(1000), StatusIs(missing));
  EXPECT_THAT(MakePairCalls(-1), StatusIs(missing));
  EXPECT_THAT(DeviceUuid(1000), StatusIs(missing));
}

TEST(PairCallsTest, KnowsTheVersionThatIntroducedNonBlockingInitOrALaterOne) {
  if (NcclVersion() != 0) {
    EXPECT_GE(NcclVersion(), 21400);
  }
}

}  // namespace
}  // namespace pkv
