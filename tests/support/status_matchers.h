#ifndef PKV_TESTS_SUPPORT_STATUS_MATCHERS_H_
#define PKV_TESTS_SUPPORT_STATUS_MATCHERS_H_

// GoogleMock matchers for absl::Status and absl::StatusOr, with the names and meaning of Abseil's
// later absl/status/status_matchers.h, to swap when available.
//
//   EXPECT_THAT(store.Put(key), IsOk());
//   EXPECT_THAT(ParseSize("12"), IsOkAndHolds(12));
//   EXPECT_THAT(ParseHeader(bytes), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("magic")));

#include <gmock/gmock.h>

#include <ostream>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace pkv {
namespace status_matchers_internal {

inline const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& status_or) {
  return status_or.status();
}

class IsOkMatcher {
 public:
  using is_gtest_matcher = void;

  template <typename StatusLike>
  bool MatchAndExplain(const StatusLike& actual, testing::MatchResultListener* listener) const {
    *listener << "whose status is " << StatusOf(actual).ToString();
    return actual.ok();
  }
  void DescribeTo(std::ostream* os) const { *os << "is OK"; }
  void DescribeNegationTo(std::ostream* os) const { *os << "is not OK"; }
};

template <typename ValueMatcher>
class IsOkAndHoldsMatcher {
 public:
  using is_gtest_matcher = void;

  explicit IsOkAndHoldsMatcher(ValueMatcher value_matcher)
      : value_matcher_(std::move(value_matcher)) {}

  template <typename T>
  bool MatchAndExplain(const absl::StatusOr<T>& actual,
                       testing::MatchResultListener* listener) const {
    if (!actual.ok()) {
      *listener << "whose status is " << actual.status().ToString();
      return false;
    }
    *listener << "which holds " << testing::PrintToString(*actual) << " ";
    return testing::SafeMatcherCast<const T&>(value_matcher_).MatchAndExplain(*actual, listener);
  }
  void DescribeTo(std::ostream* os) const { *os << "is OK and holds the expected value"; }
  void DescribeNegationTo(std::ostream* os) const {
    *os << "is not OK or does not hold the expected value";
  }

 private:
  ValueMatcher value_matcher_;
};

class StatusIsMatcher {
 public:
  using is_gtest_matcher = void;

  StatusIsMatcher(testing::Matcher<absl::StatusCode> code, testing::Matcher<std::string> message)
      : code_(std::move(code)), message_(std::move(message)) {}

  template <typename StatusLike>
  bool MatchAndExplain(const StatusLike& actual, testing::MatchResultListener* listener) const {
    const absl::Status& status = StatusOf(actual);
    *listener << "whose status is " << status.ToString();
    return code_.Matches(status.code()) && message_.Matches(std::string(status.message()));
  }
  void DescribeTo(std::ostream* os) const {
    *os << "has a code that ";
    code_.DescribeTo(os);
    *os << " and a message that ";
    message_.DescribeTo(os);
  }
  void DescribeNegationTo(std::ostream* os) const {
    *os << "does not match: ";
    DescribeTo(os);
  }

 private:
  testing::Matcher<absl::StatusCode> code_;
  testing::Matcher<std::string> message_;
};

}  // namespace status_matchers_internal

// Matches an OK absl::Status or absl::StatusOr.
inline status_matchers_internal::IsOkMatcher IsOk() { return {}; }

// Matches an OK absl::StatusOr whose value matches `value_matcher` (a value or a matcher).
template <typename ValueMatcher>
auto IsOkAndHolds(ValueMatcher&& value_matcher) {
  return status_matchers_internal::IsOkAndHoldsMatcher<std::decay_t<ValueMatcher>>(
      std::forward<ValueMatcher>(value_matcher));
}

// Matches an absl::Status or absl::StatusOr by code and message, each a value or a matcher.
template <typename CodeMatcher>
auto StatusIs(CodeMatcher&& code) {
  return status_matchers_internal::StatusIsMatcher(
      testing::SafeMatcherCast<absl::StatusCode>(std::forward<CodeMatcher>(code)), testing::_);
}
template <typename CodeMatcher, typename MessageMatcher>
auto StatusIs(CodeMatcher&& code, MessageMatcher&& message) {
  return status_matchers_internal::StatusIsMatcher(
      testing::SafeMatcherCast<absl::StatusCode>(std::forward<CodeMatcher>(code)),
      testing::SafeMatcherCast<std::string>(std::forward<MessageMatcher>(message)));
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_STATUS_MATCHERS_H_
