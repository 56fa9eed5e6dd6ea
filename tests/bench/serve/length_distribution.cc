#include "tests/bench/serve/length_distribution.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/base/log.h"

namespace pkv {
namespace {

bool ReadLength(const std::string& text, int& length) {
  return absl::SimpleAtoi(text, &length) && length >= 1 && length <= kMaxRequestTokens;
}

}  // namespace

absl::StatusOr<LengthDistribution> LengthDistribution::Parse(absl::string_view text) {
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  LengthDistribution lengths;
  if (text == "trace") return lengths;
  if (parts[0] == "fixed" && parts.size() == 2) {
    lengths.kind_ = Kind::kUniform;
    if (ReadLength(parts[1], lengths.first_)) {
      lengths.last_ = lengths.first_;
      return lengths;
    }
  } else if (parts[0] == "uniform" && parts.size() == 3) {
    lengths.kind_ = Kind::kUniform;
    if (ReadLength(parts[1], lengths.first_) && ReadLength(parts[2], lengths.last_) &&
        lengths.first_ <= lengths.last_) {
      return lengths;
    }
  } else if (parts[0] == "lognormal" && parts.size() == 3) {
    lengths.kind_ = Kind::kLognormal;
    int median = 0;
    if (ReadLength(parts[1], median) && absl::SimpleAtod(parts[2], &lengths.sigma_) &&
        lengths.sigma_ > 0 && lengths.sigma_ <= 10) {
      lengths.median_ = median;
      return lengths;
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("length '", text,
                   "' is none of fixed:N, uniform:A:B, lognormal:MEDIAN:SIGMA and trace, with "
                   "lengths of 1..",
                   kMaxRequestTokens, ", A <= B and SIGMA in (0, 10]"));
}

int LengthDistribution::Draw(RandomStream& random) const {
  PKV_CHECK(!from_trace(), "the length is the trace's");
  if (kind_ == Kind::kUniform) {
    return first_ + static_cast<int>(random.Below(static_cast<uint64_t>(last_ - first_) + 1));
  }
  const double length = median_ * std::exp(sigma_ * random.Normal());
  return static_cast<int>(std::clamp(std::round(length), 1.0, double{kMaxRequestTokens}));
}

}  // namespace pkv
