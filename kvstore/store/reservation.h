#ifndef PKV_KVSTORE_STORE_RESERVATION_H_
#define PKV_KVSTORE_STORE_RESERVATION_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/store/slab_arena.h"
#include "pkv/block/object_key.h"

namespace pkv {

// What may go to make room.
enum class Room {
  kOfAny,
  kOfDemoted,  // what is on disk, or never written there
};

class BlockStore;

// What is known of an object before its bytes arrive.
struct ReservationSpec {
  ObjectKey key;
  int num_layers = 0;
  uint64_t frame_bytes = 0;
};

// Memory of one object that is being written; nobody sees it before BlockStore::Commit().
// Destroying it gives the memory back. Must not outlive the store.
//
// Thread-compatible.
class Reservation {
 public:
  Reservation() = default;
  ~Reservation() { Release(); }
  Reservation(Reservation&& other) noexcept;
  Reservation& operator=(Reservation&& other) noexcept;

  // False for a default, moved-from or committed reservation.
  explicit operator bool() const { return store_ != nullptr; }
  const ReservationSpec& spec() const { return spec_; }

  // The next `length` bytes of a layer frame, to be filled by the caller and then taken over with
  // Finish(), which checksums them. Bytes of one frame come in order; frames in any order.
  //   InvalidArgument  layer or range outside the object, or `offset` is not where this frame ends
  absl::StatusOr<std::span<std::byte>> Prepare(int layer, uint64_t offset, uint64_t length);
  void Finish(int layer, uint64_t length);
  // The object's memory in whole units, for who fills it at once from a disk and then calls
  // BlockStore::PublishFromDisk(). Behind the object it is zero.
  std::span<std::byte> units();
  // Prepare, copy, Finish.
  absl::Status Write(int layer, uint64_t offset, std::span<const std::byte> bytes);

 private:
  friend class BlockStore;
  struct Frame {
    uint64_t written_bytes = 0;
    uint32_t crc32c = 0;
  };
  Reservation(BlockStore* store, const ReservationSpec& spec, const SlabArena::Extent& extent,
              std::span<std::byte> bytes);
  void Release();
  std::span<std::byte> FrameBytes(int layer) const;

  BlockStore* store_ = nullptr;
  ReservationSpec spec_;
  SlabArena::Extent extent_;
  std::span<std::byte> bytes_;  // the whole object, inside the extent
  std::vector<Frame> frames_;
};

}  // namespace pkv

#endif  // PKV_KVSTORE_STORE_RESERVATION_H_
