#ifndef PKV_KVSTORE_SERVICE_GET_PLAN_H_
#define PKV_KVSTORE_SERVICE_GET_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/store/block_store.h"

namespace pkv {

struct GetSpec {
  std::vector<ObjectKey> keys;
  int layer_begin = 0;
  int layer_end = 0;           // 0: all layers
  uint64_t message_bytes = 0;  // of payload a message; > 0
};

// Cuts one Get into messages, layer by layer, many objects a message, without copying: a piece
// points into the store. Every frame is checked against its checksum before its first piece is
// handed out; a damaged object is quarantined and the rest goes on.
//
// Thread-compatible.
class GetPlan {
 public:
  struct Piece {
    int object_index = 0;
    int layer = 0;
    uint64_t offset = 0;
    std::span<const std::byte> bytes;
    // Shared by the plan and every piece on its way: the last of them ends the pin.
    std::shared_ptr<const Lease> lease;
  };
  struct Message {
    std::vector<Piece> pieces;
    uint64_t payload_bytes = 0;
    uint64_t logical_bytes = 0;  // of the frames that end in this message, as fp16 KV
    int layers_done = 0;         // all layers below are complete for every object that is still OK
  };

  // Pins what is stored. `store` outlives the plan and its pieces.
  GetPlan(BlockStore* store, const GetSpec& spec);

  // Header and frame table of each object, empty when its status is not OK. Valid as long as the
  // plan.
  const std::vector<std::span<const std::byte>>& heads() const { return heads_; }
  // NotFound, DataLoss, or InvalidArgument when layer_end is beyond its layers; grows worse while
  // messages are taken, never better.
  const std::vector<absl::Status>& statuses() const { return statuses_; }

  bool done() const { return layer_ >= layer_end_; }
  // REQUIRES: !done(). May hold no piece, when what was left is damaged.
  Message Next();

 private:
  bool TakeFrame(Message& message);
  bool VerifyCurrent();
  void Drop(int object_index, const absl::Status& status);

  BlockStore* const store_;
  const uint64_t message_bytes_;
  std::vector<std::shared_ptr<const Lease>> leases_;  // null when the status is not OK
  std::vector<std::span<const std::byte>> heads_;
  std::vector<uint64_t> logical_frame_bytes_;
  std::vector<absl::Status> statuses_;
  int layer_end_ = 0;
  // Next byte to hand out.
  int layer_ = 0;
  size_t object_ = 0;
  uint64_t offset_ = 0;
};

}  // namespace pkv

#endif  // PKV_KVSTORE_SERVICE_GET_PLAN_H_
