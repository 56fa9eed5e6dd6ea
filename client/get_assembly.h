#ifndef PKV_CLIENT_GET_ASSEMBLY_H_
#define PKV_CLIENT_GET_ASSEMBLY_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/object_check.h"
#include "pkv/block/aligned_buffer.h"
#include "pkv/block/object_header.h"
#include "pkv/block/object_key.h"
#include "proto/transport/data_frame.h"

namespace pkv {

// Puts the frames of a Get where they belong: one buffer per object, frames in layer order, piece
// after piece. Does not verify payload: that is long work, done by who waits (VerifyLayer).
//
// An error from OnFrame is final. DataLoss: what the server sent makes no sense.
// Thread-compatible; what frame() returned may be read while later frames arrive.
class GetAssembly {
 public:
  // `numbering`: for messages. Layers below `first_layer` are not asked for and count as complete.
  // `heads`: of the objects that were begun to be fetched otherwise, one for each key; empty: none.
  explicit GetAssembly(std::vector<ObjectKey> keys, ObjectNumbering numbering = {},
                       int first_layer = 0, std::vector<std::string> heads = {});

  // Starts one attempt of the transfer: forgets the layer that was cut off and returns the first
  // layer to ask for.
  int BeginAttempt();

  // One message of the current attempt.
  //   NotFound  an object is not stored (names the first)
  //   DataLoss  a head is damaged or is not of the object asked for, a piece is out of place
  //   Aborted   an object is not the one that an earlier attempt, or who has its head, began to
  //   fetch others    from the trailer, as the server said
  absl::Status OnFrame(DecodedDataFrame& frame);

  bool has_manifest() const { return has_manifest_; }
  // Of the object with most. REQUIRES: has_manifest().
  int num_layers() const { return static_cast<int>(layer_pending_.size()); }
  // Layers below this one have arrived for every object.
  int num_complete_layers() const { return num_complete_layers_; }
  bool complete() const { return has_manifest_ && num_complete_layers_ == num_layers(); }
  // Payload bytes, those fetched twice counted twice.
  uint64_t received_bytes() const { return received_bytes_; }

  int num_objects() const { return static_cast<int>(objects_.size()); }
  const ObjectHeader& header(int object_index) const;
  // REQUIRES: the layer is complete and the object has it.
  std::span<const std::byte> frame(int object_index, int layer) const;
  const ObjectHead& head(int object_index) const;
  // Leaves the object empty. REQUIRES: complete().
  AlignedBuffer TakeObject(int object_index);

 private:
  struct Object {
    ObjectKey key;
    std::string head_bytes;  // as received; before the manifest as expected, or empty
    ObjectHead head;
    AlignedBuffer buffer;         // allocated when the first piece arrives
    uint64_t received_bytes = 0;  // of the frames, from the front
  };

  absl::Status OnManifest(const v1::GetManifest& manifest);
  absl::Status OnHead(const std::string& head_bytes, int object_index);
  absl::Status OnPiece(const v1::Piece& piece, PayloadReader& payload);
  absl::Status OnTrailer(const v1::GetTrailer& trailer) const;

  std::string NameOf(int object_index) const {
    return ObjectName(objects_[object_index].key, numbering_(object_index));
  }

  const ObjectNumbering numbering_;
  std::vector<Object> objects_;
  std::vector<int> layer_pending_;  // objects whose frame of this layer has not arrived
  int num_complete_layers_;
  uint64_t received_bytes_ = 0;
  bool has_manifest_ = false;
  bool attempt_has_manifest_ = false;
};

}  // namespace pkv

#endif  // PKV_CLIENT_GET_ASSEMBLY_H_
