#ifndef PKV_PROTO_TRANSPORT_NCCL_TRANSFER_PLAN_H_
#define PKV_PROTO_TRANSPORT_NCCL_TRANSFER_PLAN_H_

// How the spans of layers are cut into groups.
//
// What goes over the wire is one stream of bytes: the spans of the first layer in their order, then
// those of the next. A group is the next group_bytes of it, the last one what is left, and travels
// in one send. So both ends cut alike when they agree on group_bytes and on the total, however
// differently the bytes lie in their memories. And a receiver that knows the total can have the
// first groups sent to its staging before it knows where their bytes are to lie.

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
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

// The layers of a call, made as they are needed.
struct LayerSource {
  size_t num_layers = 0;     // at least one
  uint64_t total_bytes = 0;  // of all
  // Layer 0, 1, and so on, each once; its spans and checksums are valid until the next is asked
  // for. Not OK: they lie nowhere.
  std::function<absl::StatusOr<LayerSpans>(size_t layer_index)> layer;
  // Whether it is known where the bytes lie, or that they lie nowhere: before that a receive does
  // not ask. Null: it is.
  std::function<bool()> is_known = nullptr;

  // Of layers that are all known, which outlive it. InvalidArgument: no layer, or one that Check
  // refuses.
  static absl::StatusOr<LayerSource> Of(std::span<const LayerSpans> layers);
};

// InvalidArgument: a layer without spans, a span that is empty or not aligned to 16 bytes, or with
// checksums or rules for some of the layer's spans only.
absl::Status CheckLayer(const LayerSpans& layer, size_t layer_index);

// What travels in one send.
struct TransferGroup {
  // Bytes of one span in one group.
  struct Piece {
    std::byte* data = nullptr;
    uint64_t bytes = 0;
    uint64_t offset = 0;       // in the group
    uint64_t bytes_after = 0;  // of the span, in later groups
    DeviceSpan span;
    uint32_t layer = 0;
    uint32_t index = 0;                 // of the span in the layer
    uint32_t checksum = 0;              // of the span; 0 without checksums
    const FrameRules* rules = nullptr;  // of the span

    bool begins_span() const { return data == span.data; }
    bool ends_span() const { return bytes_after == 0; }
  };

  uint64_t bytes = 0;
  std::vector<Piece> pieces = {};
  std::vector<void*> ready = {};  // of the group's layers, as far as they have one
  uint32_t layers_done = 0;       // layers below this are complete after the group
  // Where all of it lies in one piece of device memory; null: in several, or in the host's.
  std::byte* contiguous = nullptr;
};

// Cuts one group after the other, so that the first can travel while the lists of later ones are
// not made. Thread-compatible.
class TransferPlan {
 public:
  // REQUIRES: source.total_bytes not 0, and as group_bytes a multiple of kSpanAlignmentBytes.
  TransferPlan(LayerSource source, uint64_t group_bytes);

  size_t num_groups() const { return num_groups_; }
  uint64_t BytesOf(size_t group_index) const;
  // Whether the source knows what Next() asks.
  bool IsNextKnown() const;

  // The next group; what `group` held is gone. REQUIRES: there is one.
  //   InvalidArgument  as CheckLayer; the layers' bytes are not total_bytes
  //   statuses of source.layer
  absl::Status Next(TransferGroup& group);

 private:
  absl::Status TakeLayer(TransferGroup& group);

  const LayerSource source_;
  const uint64_t group_bytes_;
  const size_t num_groups_;
  size_t next_group_ = 0;
  // Where the next group begins.
  LayerSpans layer_;
  uint32_t num_layers_taken_ = 0;
  size_t span_index_ = 0;    // in layer_; its size: at the end
  uint64_t span_begin_ = 0;  // in the span
};

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_NCCL_TRANSFER_PLAN_H_
