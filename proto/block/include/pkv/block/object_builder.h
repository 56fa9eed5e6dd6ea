#ifndef PKV_BLOCK_OBJECT_BUILDER_H_
#define PKV_BLOCK_OBJECT_BUILDER_H_

#include <cstddef>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/block/aligned_buffer.h"
#include "pkv/block/object_header.h"

namespace pkv {

// Makes one object: reserve, fill the frames in any order, seal.
//
// Thread-compatible; different frames may be filled from different threads.
class ObjectBuilder {
 public:
  // `header` gives kind, encoding, geometry, variant, profile; ids may be set later, before Seal().
  //   InvalidArgument  as ComputeObjectSizes
  static absl::StatusOr<ObjectBuilder> Make(const ObjectHeader& header);

  // Ids, parent and table may be changed until Seal(). Nothing that changes a size may.
  ObjectHeader& header() { return header_; }
  const ObjectHeader& header() const { return header_; }

  // frame_bytes of zeros at first, aligned to 128. Lives as long as the builder.
  std::span<std::byte> frame(int layer);
  std::span<const std::byte> frame(int layer) const;

  // Computes every checksum, for a table also its id, and writes header and frame table. The object
  // is then complete.
  //   DataLoss         a frame fails CheckFrameNumbers: what is about to be stored must be servable
  //   InvalidArgument  as SealHeader, or a field that decides a size was changed since Make()
  absl::Status Seal();

  // The object's bytes. REQUIRES: sealed. TakeBuffer() leaves the builder empty.
  std::span<const std::byte> bytes() const { return buffer_.span(); }
  // Header and frame table alone: [0, FramesOffset). REQUIRES: sealed.
  std::span<const std::byte> head() const;
  AlignedBuffer TakeBuffer() { return std::move(buffer_); }

 private:
  ObjectBuilder(const ObjectHeader& header, AlignedBuffer buffer);

  ObjectHeader header_;
  AlignedBuffer buffer_;
};

}  // namespace pkv

#endif  // PKV_BLOCK_OBJECT_BUILDER_H_
