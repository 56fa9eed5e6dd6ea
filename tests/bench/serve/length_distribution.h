#ifndef PKV_TESTS_BENCH_SERVE_LENGTH_DISTRIBUTION_H_
#define PKV_TESTS_BENCH_SERVE_LENGTH_DISTRIBUTION_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tests/bench/serve/random_stream.h"

namespace pkv {

// A million tokens: more than any model here takes, and few enough for one message.
inline constexpr int kMaxRequestTokens = 1 << 20;

// How many tokens a prompt or an answer has. Lengths are 1..kMaxRequestTokens.
// Thread-safe: constant.
class LengthDistribution {
 public:
  // "fixed:N"; "uniform:A:B", both ends included; "lognormal:MEDIAN:SIGMA", SIGMA of the natural
  // logarithm, draws beyond the limits moved to them; "trace": as the request of a trace.
  //   InvalidArgument  anything else, lengths out of range, A > B, SIGMA not in (0, 10]
  static absl::StatusOr<LengthDistribution> Parse(absl::string_view text);

  bool from_trace() const { return kind_ == Kind::kTrace; }
  // REQUIRES: !from_trace()
  int Draw(RandomStream& random) const;

 private:
  enum class Kind { kUniform, kLognormal, kTrace };
  Kind kind_ = Kind::kTrace;
  int first_ = 0, last_ = 0;  // uniform
  double median_ = 0, sigma_ = 0;
};

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_SERVE_LENGTH_DISTRIBUTION_H_
