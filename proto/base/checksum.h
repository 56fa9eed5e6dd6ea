#ifndef PKV_PROTO_BASE_CHECKSUM_H_
#define PKV_PROTO_BASE_CHECKSUM_H_

#include <cstddef>
#include <cstdint>
#include <span>

namespace pkv {

// CRC-32C (Castagnoli, reflected, init and final xor ~0): Crc32c("123456789") == 0xe3069283.
// Computed by ISA-L. `seed` is the value returned for the bytes before, so that a checksum may be
// taken piece by piece.
uint32_t Crc32c(std::span<const std::byte> bytes, uint32_t seed = 0);

}  // namespace pkv

#endif  // PKV_PROTO_BASE_CHECKSUM_H_
