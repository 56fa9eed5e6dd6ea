#ifndef PKV_CLIENT_OBJECT_CHECK_H_
#define PKV_CLIENT_OBJECT_CHECK_H_

// What is checked of an object that comes from a server, over whatever transport.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/block/object_header.h"
#include "pkv/block/object_key.h"
#include "proto/base/thread_pool.h"

namespace pkv {

// Bounds on what a server may announce. The largest honest object is an fp16 window of 4,096
// tokens: 1.3 GB for 80 layers of 8 kv heads of 128.
inline constexpr uint64_t kMaxObjectBytes = uint64_t{4} << 30;
inline constexpr uint64_t kMaxGetBytes = uint64_t{64} << 30;

// "object 3 (0123abcd, variant pkv2)", for messages.
std::string ObjectName(const ObjectKey& key, int object_index);

// What the object at an index is called: its place in the caller's list, of which this has a part.
struct ObjectNumbering {
  int first = 0, step = 1;
  int operator()(int index) const { return first + index * step; }
};

struct ObjectHead {
  ObjectHeader header;
  std::vector<uint32_t> frame_crcs;  // by layer
};
// Header and frame table of the object that was asked for as `key`. Errors name the object.
//   DataLoss            damaged, of another object, or impossible
//   FailedPrecondition  a format version that this build does not read
absl::StatusOr<ObjectHead> ParseObjectHead(const ObjectKey& key, int object_index,
                                           std::span<const std::byte> head);

// Checksum and numbers of one layer frame. DataLoss names the object.
absl::Status CheckLayerFrame(const ObjectHead& head, int object_index, int layer,
                             std::span<const std::byte> frame);

struct LayerFrame {
  const ObjectHead* head = nullptr;
  int object_index = 0;
  std::span<const std::byte> bytes;
};
// The same of all frames of a layer, on `pool` and the calling thread when there is much to check.
// `pool` may be null. The error of the first of `frames` that has one; *damaged is its
// object_index then.
absl::Status CheckLayerFrames(std::span<const LayerFrame> frames, int layer, ThreadPool* pool,
                              int* damaged);

// That a pattern table is what its id says; OK for every other kind. `frames`: all, in order.
absl::Status CheckTableContent(const ObjectHeader& header, int object_index,
                               std::span<const std::byte> frames);

}  // namespace pkv

#endif  // PKV_CLIENT_OBJECT_CHECK_H_
