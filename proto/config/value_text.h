#ifndef PKV_PROTO_CONFIG_VALUE_TEXT_H_
#define PKV_PROTO_CONFIG_VALUE_TEXT_H_

// Settings as text: one way to write each kind of value, wherever it stands. Every Parse answers
// InvalidArgument with the text and what may be written instead; every Text is read back as the
// same value.

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace pkv {

// Bytes: a whole number and a unit, KiB MiB GiB TiB (powers of 1024; Ki Mi Gi Ti as Kubernetes has
// them) or kB MB GB TB (powers of 1000), in any case; without a unit, or with B, bytes. A letter
// alone is refused: half the world reads "4G" as one of them, half as the other.
absl::StatusOr<uint64_t> ParseSize(absl::string_view text);
// The largest unit of 1024 that divides it: "4GiB", "1000", "0".
std::string SizeText(uint64_t bytes);

// Not negative and finite: numbers with units ns us ms s m h, as in 250ms, 1.5s or 1h30m. A number
// without a unit is refused, 0 too: whoever writes 30 may have meant seconds or milliseconds.
absl::StatusOr<absl::Duration> ParseDurationText(absl::string_view text);
std::string DurationText(absl::Duration duration);

// true, yes, on, 1; false, no, off, 0; in any case.
absl::StatusOr<bool> ParseSwitch(absl::string_view text);

absl::StatusOr<int64_t> ParseInteger(absl::string_view text);

// Finite.
absl::StatusOr<double> ParseNumber(absl::string_view text);
// The shortest text with this value.
std::string NumberText(double number);

}  // namespace pkv

#endif  // PKV_PROTO_CONFIG_VALUE_TEXT_H_
