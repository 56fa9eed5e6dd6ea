#ifndef PKV_BLOCK_OBJECT_VIEW_H_
#define PKV_BLOCK_OBJECT_VIEW_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/block/object_header.h"

namespace pkv {

// The CRC32C of each layer frame, in layer order, as stored after the header with a CRC of its own
// (BLOCK_FORMAT.md, "Frame table"). `bytes` starts at the table and may go on with its padding and
// the frames. REQUIRES: `num_layers` is that of a header that ParseHeader() accepted.
//
//   DataLoss  `bytes` is shorter than the table, the table's own checksum is wrong, or padding in
//   `bytes` is not zero
absl::StatusOr<std::vector<uint32_t>> ParseFrameTable(std::span<const std::byte> bytes,
                                                      int num_layers);

// DataLoss, with both checksums, when `frame` does not hash to `expected_crc32c`.
absl::Status VerifyFrame(std::span<const std::byte> frame, int layer, uint32_t expected_crc32c);

// Checks the stored numbers of one layer frame whose header is `header`: scales 0 or in
// [2^-14, 65504], zero points, patterns and fp16 values finite, pattern ids below the bank size the
// header states, what the block appends included, or 255 (BLOCK_FORMAT.md, "Stored numbers"). Codes
// may be any bits.
//   DataLoss  names layer, kv head, what and value; or `frame` is not frame_bytes long
absl::Status CheckFrameNumbers(const ObjectHeader& header, int layer,
                               std::span<const std::byte> frame);

// A whole object in memory, parsed in place.
//
// Points into the bytes given to Parse(), which must outlive it.
// Thread-safe (immutable).
class ObjectView {
 public:
  // Checks the header, the frame table and the length; not the frames: those are checked one by
  // one.
  //   DataLoss, FailedPrecondition, InvalidArgument  as ParseHeader and ParseFrameTable
  //   DataLoss                                       `bytes` is not object_bytes long
  static absl::StatusOr<ObjectView> Parse(std::span<const std::byte> bytes);

  const ObjectHeader& header() const { return header_; }
  // REQUIRES: 0 <= layer < num_layers.
  std::span<const std::byte> frame(int layer) const;
  uint32_t frame_crc32c(int layer) const { return frame_crcs_[layer]; }

  // DataLoss when the frame's checksum or its numbers are wrong.
  absl::Status VerifyLayer(int layer) const;
  // All layers; and for a table, that its id is the digest of its content.
  absl::Status VerifyAll() const;

 private:
  ObjectHeader header_;
  std::vector<uint32_t> frame_crcs_;
  std::span<const std::byte> bytes_;
};

}  // namespace pkv

#endif  // PKV_BLOCK_OBJECT_VIEW_H_
