#include "proto/base/checksum.h"

#include <isa-l/crc.h>

#include <algorithm>

namespace pkv {

uint32_t Crc32c(std::span<const std::byte> bytes, uint32_t seed) {
  // ISA-L takes an int length and works on the un-inverted register.
  constexpr size_t kMaxPiece = size_t{1} << 30;
  uint32_t crc = ~seed;
  while (!bytes.empty()) {
    const size_t piece = std::min(bytes.size(), kMaxPiece);
    // crc32_iscsi reads only; its parameter lacks const.
    auto* data = const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(bytes.data()));
    crc = crc32_iscsi(data, static_cast<int>(piece), crc);
    bytes = bytes.subspan(piece);
  }
  return ~crc;
}

}  // namespace pkv
