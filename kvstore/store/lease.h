#ifndef PKV_KVSTORE_STORE_LEASE_H_
#define PKV_KVSTORE_STORE_LEASE_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/block/object_header.h"
#include "pkv/block/object_key.h"

namespace pkv {

// What a search by key says of an object.
enum class Use {
  kNone,  // nothing
  kPut,   // it is wanted here
  kGet,   // it is read
};
// The first get is the hand-off for which it was put.
inline constexpr int kGetsOfReuse = 2;

class BlockStore;
struct StoredObject;

// Pins one stored object: its bytes stay where they are, unchanged, until the lease is destroyed,
// whatever is evicted or deleted meanwhile. Must not outlive the store.
//
// Thread-safe (immutable), except moving and destroying.
class Lease {
 public:
  Lease() = default;
  ~Lease() { Release(); }
  Lease(Lease&& other) noexcept;
  Lease& operator=(Lease&& other) noexcept;

  // False for a default or moved-from lease, on which nothing else may be called.
  explicit operator bool() const { return object_ != nullptr; }

  const ObjectKey& key() const;
  int num_layers() const;
  uint64_t frame_bytes() const;
  // The whole object, its head (header and frame table), one layer frame.
  std::span<const std::byte> bytes() const;
  std::span<const std::byte> head() const;
  // REQUIRES: 0 <= layer < num_layers().
  std::span<const std::byte> frame(int layer) const;
  // Where bytes() begin in the arena's file.
  uint64_t arena_offset() const;

  // Checks header and frame table against their checksums and the key.
  //   DataLoss  memory changed since the commit: call BlockStore::Quarantine()
  absl::StatusOr<ObjectHeader> VerifyHead() const;
  // Checks one frame against the frame table. DataLoss as above.
  absl::Status VerifyFrame(int layer) const;

 private:
  friend class BlockStore;
  Lease(BlockStore* store, StoredObject* object) : store_(store), object_(object) {}
  void Release();

  BlockStore* store_ = nullptr;
  StoredObject* object_ = nullptr;
};

}  // namespace pkv

#endif  // PKV_KVSTORE_STORE_LEASE_H_
