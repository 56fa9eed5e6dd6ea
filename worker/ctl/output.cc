#include "worker/ctl/output.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

namespace pkv {

int ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 0;
    case absl::StatusCode::kInvalidArgument:
      return 2;
    case absl::StatusCode::kNotFound:
      return 3;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kResourceExhausted:
      return 4;
    case absl::StatusCode::kDataLoss:
      return 5;
    default:
      return 1;
  }
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "pkvctl: %s\n", status.ToString().c_str());
  return ExitCodeOf(status);
}

void PrintJson(const nlohmann::ordered_json& document) {
  // Generated text may end inside a UTF-8 character: print what is no character as U+FFFD.
  std::printf(
      "%s\n",
      document.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
}

std::string VariantText(const Variant& variant) {
  return absl::StrCat(variant.name, ":", absl::Hex(variant.params_digest, absl::kZeroPad16));
}

std::string FormatBytes(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 1000 && unit < 4) {
    value /= 1000;
    ++unit;
  }
  const int num_decimals = unit == 0 || value >= 100 ? 0 : (value >= 10 ? 1 : 2);
  return absl::StrFormat("%.*f %s", num_decimals, value, kUnits[unit]);
}

std::string FormatSeconds(double seconds) {
  const int64_t total = std::isfinite(seconds) && seconds > 0 ? std::llround(seconds) : 0;
  if (total < 60) return absl::StrCat(total, " s");
  const int64_t minutes = total / 60;
  if (minutes < 60) return absl::StrFormat("%d:%02d", minutes, total % 60);
  return absl::StrFormat("%d:%02d:%02d", minutes / 60, minutes % 60, total % 60);
}

ProgressLine::ProgressLine(absl::string_view label, bool enabled)
    : label_(label), start_(absl::ToUnixMicros(absl::Now()) * 1e-6) {
  const char* term = std::getenv("TERM");
  visible_ =
      enabled && isatty(STDERR_FILENO) && (term == nullptr || std::strcmp(term, "dumb") != 0);
}

ProgressLine::~ProgressLine() {
  if (visible_) std::fputs("\r\x1b[K", stderr);
}

void ProgressLine::Update(int done, int total) {
  if (!visible_ || done <= 0) return;
  const double elapsed = absl::ToUnixMicros(absl::Now()) * 1e-6 - start_;
  std::fprintf(stderr, "\r\x1b[K%s %d/%d, %s, %s left", label_.c_str(), done, total,
               FormatSeconds(elapsed).c_str(),
               FormatSeconds(elapsed / done * (total - done)).c_str());
  std::fflush(stderr);
}

}  // namespace pkv
