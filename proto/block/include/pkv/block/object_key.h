#ifndef PKV_BLOCK_OBJECT_KEY_H_
#define PKV_BLOCK_OBJECT_KEY_H_

#include <compare>
#include <cstdint>
#include <string>
#include <utility>

#include "pkv/block/digest.h"

namespace pkv {

// What an object holds. Values are part of the format.
enum class ObjectKind : uint8_t {
  kBlock = 1,   // 128 tokens, all layers, one variant
  kWindow = 2,  // fp16 K and V of the tokens after the last block of a hand-off
  kTable = 3,   // pattern table, all layers
};

// How a prefix is encoded: a preset's name and the digest of all its parameters.
struct Variant {
  std::string name;            // at most 15 bytes, [a-z0-9_-]
  uint64_t params_digest = 0;  // CodecParams::Digest()

  friend auto operator<=>(const Variant&, const Variant&) = default;
  template <typename H>
  friend H AbslHashValue(H state, const Variant& variant) {
    return H::combine(std::move(state), variant.name, variant.params_digest);
  }
};

// Identity of a stored object. Write-once: one key names one sequence of bytes for ever.
struct ObjectKey {
  ObjectKind kind = ObjectKind::kBlock;
  Digest id;  // prefix id (block), tail id (window), table digest (table)
  Variant variant;

  friend auto operator<=>(const ObjectKey&, const ObjectKey&) = default;
  template <typename H>
  friend H AbslHashValue(H state, const ObjectKey& key) {
    return H::combine(std::move(state), key.kind, key.id, key.variant);
  }
};

}  // namespace pkv

#endif  // PKV_BLOCK_OBJECT_KEY_H_
