#include "proto/base/status_macros.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

absl::StatusOr<int> Half(int value) {
  if (value % 2 != 0) return absl::InvalidArgumentError("odd");
  return value / 2;
}

absl::StatusOr<int> Quarter(int value) {
  PKV_ASSIGN_OR_RETURN(const int half, Half(value));
  PKV_ASSIGN_OR_RETURN(const int quarter, Half(half));
  return quarter;
}

absl::Status RunBoth(const absl::Status& first, const absl::Status& second, int& num_run) {
  PKV_RETURN_IF_ERROR(first);
  ++num_run;
  PKV_RETURN_IF_ERROR(second);
  ++num_run;
  return absl::OkStatus();
}

TEST(StatusMacrosTest, AssignsTheValue) { EXPECT_THAT(Quarter(12), IsOkAndHolds(3)); }

TEST(StatusMacrosTest, ReturnsTheFirstError) {
  EXPECT_THAT(Quarter(5), StatusIs(absl::StatusCode::kInvalidArgument, "odd"));
  EXPECT_THAT(Quarter(6), StatusIs(absl::StatusCode::kInvalidArgument, "odd"));
}

TEST(StatusMacrosTest, StopsAtTheFirstErrorOnly) {
  int num_run = 0;
  EXPECT_THAT(RunBoth(absl::OkStatus(), absl::AbortedError("late"), num_run),
              StatusIs(absl::StatusCode::kAborted, "late"));
  EXPECT_EQ(num_run, 1);
  EXPECT_THAT(RunBoth(absl::OkStatus(), absl::OkStatus(), num_run), IsOk());
  EXPECT_EQ(num_run, 3);
}

TEST(StatusMacrosTest, MovesValuesThatCannotBeCopied) {
  const auto take = []() -> absl::StatusOr<int> {
    PKV_ASSIGN_OR_RETURN(const std::unique_ptr<int> owned,
                         absl::StatusOr<std::unique_ptr<int>>(std::make_unique<int>(7)));
    return *owned;
  };
  EXPECT_THAT(take(), IsOkAndHolds(7));
}

}  // namespace
}  // namespace pkv
