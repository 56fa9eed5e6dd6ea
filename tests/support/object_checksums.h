#ifndef PKV_TESTS_SUPPORT_OBJECT_CHECKSUMS_H_
#define PKV_TESTS_SUPPORT_OBJECT_CHECKSUMS_H_

// Makes the checksums of a changed object right again, so that a test or a fuzzer reaches the
// checks behind them.

#include <cstddef>
#include <cstring>
#include <span>

#include "pkv/block/object_header.h"
#include "proto/base/checksum.h"

namespace pkv {

// Recomputes the CRC of the header. REQUIRES: 256 bytes or more.
inline void FixHeaderChecksum(std::span<std::byte> object) {
  constexpr size_t kOffset = offsetof(ObjectHeader, header_crc32c);
  const uint32_t crc = Crc32c(object.first(kOffset));
  std::memcpy(object.data() + kOffset, &crc, sizeof(crc));
}

// Recomputes the CRCs of all frames and of the frame table, as far as `object` reaches. Takes the
// geometry from the header without trusting it.
inline void FixFrameChecksums(std::span<std::byte> object) {
  ObjectHeader header;
  if (object.size() < sizeof(header)) return;
  std::memcpy(&header, object.data(), sizeof(header));
  const size_t frames_offset = FramesOffset(header.num_layers);
  if (object.size() < frames_offset) return;
  size_t offset = frames_offset;
  for (size_t layer = 0; layer < header.num_layers; ++layer) {
    if (header.frame_bytes > object.size() - offset) return;
    const uint32_t crc = Crc32c(object.subspan(offset, header.frame_bytes));
    std::memcpy(object.data() + sizeof(header) + layer * sizeof(crc), &crc, sizeof(crc));
    offset += header.frame_bytes;
  }
  const size_t crcs_bytes = header.num_layers * sizeof(uint32_t);
  const uint32_t crc = Crc32c(object.subspan(sizeof(header), crcs_bytes));
  std::memcpy(object.data() + sizeof(header) + crcs_bytes, &crc, sizeof(crc));
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_OBJECT_CHECKSUMS_H_
