#ifndef PKV_PROTO_BASE_CHECKED_MATH_H_
#define PKV_PROTO_BASE_CHECKED_MATH_H_

// Arithmetic on sizes that come from outside: overflow is a Status, never a wrapped number.

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace pkv {

inline absl::StatusOr<uint64_t> CheckedMultiply(uint64_t a, uint64_t b) {
  uint64_t product;
  if (__builtin_mul_overflow(a, b, &product)) {
    return absl::InvalidArgumentError(absl::StrCat("size overflows 64 bits: ", a, " * ", b));
  }
  return product;
}

inline absl::StatusOr<uint64_t> CheckedAdd(uint64_t a, uint64_t b) {
  uint64_t sum;
  if (__builtin_add_overflow(a, b, &sum)) {
    return absl::InvalidArgumentError(absl::StrCat("size overflows 64 bits: ", a, " + ", b));
  }
  return sum;
}

// Rounds `value` up to a multiple of `alignment`, a power of two. REQUIRES: value <= 2^63.
constexpr uint64_t AlignUp(uint64_t value, uint64_t alignment) {
  return (value + alignment - 1) & ~(alignment - 1);
}

}  // namespace pkv

#endif  // PKV_PROTO_BASE_CHECKED_MATH_H_
