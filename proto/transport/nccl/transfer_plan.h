#ifndef PKV_PROTO_TRANSPORT_NCCL_TRANSFER_PLAN_H_
#define PKV_PROTO_TRANSPORT_NCCL_TRANSFER_PLAN_H_

// How the spans of layers are cut into groups.
//
// What goes over the wire is one stream of bytes: the spans of the first layer in their order, then
// those of the next. A group is the next group_bytes of it, the last one what is left, and travels
// in one send. So both ends cut alike when they agree on group_bytes and on the total, however
// differently the bytes lie in their memories.

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/transport/nccl/frame_rules.h"
#include "proto/transport/nccl/span_digest.h"

namespace pkv {

// A layer of a transfer, or the part of one that this call moves.
struct LayerSpans {
  std::span<const DeviceSpan> spans = {};  // at least one; device memory of the pair's GPU
  // CRC-32C of each span, which a receiver compares. A sender needs none.
  std::span<const uint32_t> checksums = {};
  // What the numbers in each span, a whole frame, must be, which a receiver checks; empty: nothing
  // is. What they point at lives as long as the call.
  std::span<const FrameRules* const> rules = {};
  // A sender's spans lie in host memory that PairCalls::RegisterHost knows: the GPU reads them
  // through the bus, into staging.
  bool in_host_memory = false;
  // A cudaEvent_t after which the spans may be read (sender) or overwritten (receiver); null: now.
  void* ready = nullptr;
};

struct TransferPlan {
  // Bytes of one span in one group.
  struct Piece {
    std::byte* data = nullptr;
    uint64_t bytes = 0;
    uint64_t offset = 0;  // in the group
  };
  // A span whose last byte is in the group.
  struct EndingSpan {
    DeviceSpan span;
    uint32_t layer = 0;
    uint32_t index = 0;  // in the layer
    const FrameRules* rules = nullptr;
  };
  struct Group {
    uint64_t bytes = 0;
    std::vector<Piece> pieces = {};
    std::vector<EndingSpan> ending = {};
    uint32_t first_layer = 0;  // of the group's first byte
    uint32_t end_layer = 0;    // after that of its last
    uint32_t layers_done = 0;  // layers below this are complete after the group
    // Where all of it lies in one piece of device memory; null: in several, or in the host's.
    std::byte* contiguous = nullptr;
  };

  std::vector<Group> groups;

  // InvalidArgument: no layer, a layer without spans, a span that is empty or not aligned to 16
  // bytes, or with checksums or rules for some of a layer's spans only. REQUIRES: group_bytes a
  // multiple of kSpanAlignmentBytes, not 0.
  static absl::StatusOr<TransferPlan> Make(std::span<const LayerSpans> layers,
                                           uint64_t group_bytes);
};

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_NCCL_TRANSFER_PLAN_H_
