#ifndef PKV_BLOCK_DIGEST_H_
#define PKV_BLOCK_DIGEST_H_

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <span>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace pkv {

// 32 bytes of SHA-256 output. All zero means "none".
struct Digest {
  std::array<uint8_t, 32> bytes{};

  bool IsZero() const { return *this == Digest{}; }
  // 64 lower-case hex digits.
  std::string ToHex() const;
  // The first 12 hex digits, for logs: never log a full key.
  std::string ToShortHex() const;

  // InvalidArgument unless `hex` is 64 hex digits.
  static absl::StatusOr<Digest> FromHex(absl::string_view hex);
  // InvalidArgument unless `raw` is 32 bytes.
  static absl::StatusOr<Digest> FromBytes(absl::string_view raw);
  absl::string_view AsBytes() const {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  friend auto operator<=>(const Digest&, const Digest&) = default;

  // A digest is uniform already: eight of its bytes are its hash.
  template <typename H>
  friend H AbslHashValue(H state, const Digest& digest) {
    uint64_t word;
    std::memcpy(&word, digest.bytes.data(), sizeof(word));
    return H::combine(std::move(state), word);
  }
};

// SHA-256 (OpenSSL) of the concatenation of `parts`.
Digest Sha256(std::initializer_list<std::span<const std::byte>> parts);

}  // namespace pkv

#endif  // PKV_BLOCK_DIGEST_H_
