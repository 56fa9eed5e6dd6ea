#include "proto/config/value_text.h"

#include <charconv>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace pkv {
namespace {

absl::Status Wrong(absl::string_view text, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("\"", text, "\" ", why));
}

// 0: no such unit. `unit` is in lower case.
uint64_t UnitBytes(absl::string_view unit) {
  constexpr std::pair<const char*, uint64_t> kUnits[] = {
      {"", 1},
      {"b", 1},
      {"kib", uint64_t{1} << 10},
      {"ki", uint64_t{1} << 10},
      {"mib", uint64_t{1} << 20},
      {"mi", uint64_t{1} << 20},
      {"gib", uint64_t{1} << 30},
      {"gi", uint64_t{1} << 30},
      {"tib", uint64_t{1} << 40},
      {"ti", uint64_t{1} << 40},
      {"kb", 1'000},
      {"mb", 1'000'000},
      {"gb", 1'000'000'000},
      {"tb", 1'000'000'000'000},
  };
  for (const auto& [name, bytes] : kUnits) {
    if (unit == name) return bytes;
  }
  return 0;
}

}  // namespace

absl::StatusOr<uint64_t> ParseSize(absl::string_view text) {
  constexpr absl::string_view kForm =
      "is no size: a whole number with KiB, MiB, GiB, TiB, kB, MB, GB, TB or nothing for bytes, as "
      "in 512MiB";
  size_t num_digits = 0;
  while (num_digits < text.size() && absl::ascii_isdigit(text[num_digits])) ++num_digits;
  if (num_digits == 0) return Wrong(text, kForm);
  const std::string unit =
      absl::AsciiStrToLower(absl::StripLeadingAsciiWhitespace(text.substr(num_digits)));
  if (unit == "k" || unit == "m" || unit == "g" || unit == "t") {
    const std::string letter = absl::AsciiStrToUpper(unit);
    return Wrong(text, absl::StrCat("may mean two sizes: write ", letter, "iB (powers of 1024) or ",
                                    unit == "k" ? "k" : letter, "B (powers of 1000)"));
  }
  const uint64_t unit_bytes = UnitBytes(unit);
  if (unit_bytes == 0) return Wrong(text, kForm);
  uint64_t count = 0, bytes = 0;
  if (!absl::SimpleAtoi(text.substr(0, num_digits), &count) ||
      __builtin_mul_overflow(count, unit_bytes, &bytes)) {
    return Wrong(text, "does not fit in 64 bits of bytes");
  }
  return bytes;
}

std::string SizeText(uint64_t bytes) {
  constexpr const char* kUnits[] = {"", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  while (bytes != 0 && bytes % 1024 == 0 && unit < 4) {
    bytes /= 1024;
    ++unit;
  }
  return absl::StrCat(bytes, kUnits[unit]);
}

absl::StatusOr<absl::Duration> ParseDurationText(absl::string_view text) {
  double bare = 0;
  if (absl::SimpleAtod(text, &bare) && std::isfinite(bare)) {
    return Wrong(text, absl::StrCat("has no unit: ns, us, ms, s, m or h, as in ", text, "s"));
  }
  absl::Duration duration;
  if (!absl::ParseDuration(text, &duration) || duration == absl::InfiniteDuration() ||
      duration < absl::ZeroDuration()) {
    return Wrong(text,
                 "is no duration: numbers with ns, us, ms, s, m or h, as in 250ms, 30s or 1h30m");
  }
  return duration;
}

std::string DurationText(absl::Duration duration) {
  return duration == absl::ZeroDuration() ? "0s" : absl::FormatDuration(duration);
}

absl::StatusOr<bool> ParseSwitch(absl::string_view text) {
  const std::string word = absl::AsciiStrToLower(text);
  if (word == "true" || word == "yes" || word == "on" || word == "1") return true;
  if (word == "false" || word == "no" || word == "off" || word == "0") return false;
  return Wrong(text, "is neither true nor false");
}

absl::StatusOr<int64_t> ParseInteger(absl::string_view text) {
  int64_t number = 0;
  if (!absl::SimpleAtoi(text, &number)) return Wrong(text, "is no whole number");
  return number;
}

absl::StatusOr<double> ParseNumber(absl::string_view text) {
  double number = 0;
  if (!absl::SimpleAtod(text, &number) || !std::isfinite(number)) {
    return Wrong(text, "is no number");
  }
  return number;
}

std::string NumberText(double number) {
  char digits[32];
  const std::to_chars_result end = std::to_chars(digits, digits + sizeof(digits), number);
  return std::string(digits, end.ptr);
}

}  // namespace pkv
