#include "worker/batch/cuda_slot.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"
#include "proto/block/payload_layout.h"
#include "worker/sequence/bank.h"
#include "worker/sequence/object_place.h"

namespace pkv {
namespace {

constexpr uint8_t kFlagsAppend = kFlagAppendsK | kFlagAppendsV;

// The headers of all blocks: of those that are resident, and of those that come.
absl::StatusOr<std::vector<ObjectHeader>> BlockHeaders(const EnginePrefix& prefix) {
  std::vector<ObjectHeader> headers(prefix.pages.size());
  for (size_t i = 0; i < headers.size(); ++i) {
    if (i < prefix.resident.size() && prefix.resident[i].has_value()) {
      headers[i] = *prefix.resident[i];
    }
  }
  for (size_t i = 0; i < prefix.fetched.size(); ++i) {
    headers[prefix.fetched[i]] = prefix.stream->header(prefix.num_tables + static_cast<int>(i));
  }
  return headers;
}

// `bank`: what the blocks refer to; null without patterns.
absl::Status TakeBank(const SequenceBanks::Bank* bank, int capacity, CudaSlot& slot) {
  if (bank == nullptr) return absl::OkStatus();
  if (std::max(bank->num_k, bank->num_v) > capacity) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the sequence has ", bank->num_k, "+", bank->num_v, " patterns, a bank holds ", capacity));
  }
  slot.table = bank->table;
  slot.num_patterns_k = bank->num_k;
  slot.num_patterns_v = bank->num_v;
  return absl::OkStatus();
}

// A layer frame, in host or device memory.
struct Frame {
  std::span<const std::byte> bytes;
  bool on_device = false;
};

// Rows of one kind of pattern, at `offset` of the frame, to where they stand in a bank.
absl::Status CopyPatterns(const Frame& frame, size_t offset, int count, size_t head_bytes,
                          uint16_t* to, CudaPools& pools, UploadRing& ring) {
  const KvShape& shape = pools.shape();
  const size_t row = shape.head_dim * sizeof(uint16_t);
  return ring.Copy({frame.bytes.data() + offset, to, count * row, head_bytes,
                    pools.bank_capacity() * row, static_cast<size_t>(shape.num_kv_heads),
                    frame.on_device});
}

absl::Status LoadTable(const ObjectHeader& header, const Frame& frame, uint16_t* bank,
                       CudaPools& pools, UploadRing& ring) {
  const PayloadLayout layout = PayloadLayout::Of(header);
  const size_t k_bytes = size_t{header.num_patterns_k} * header.head_dim * sizeof(uint16_t);
  PKV_RETURN_IF_ERROR(
      CopyPatterns(frame, 0, header.num_patterns_k, layout.head_bytes, bank, pools, ring));
  return CopyPatterns(frame, k_bytes, header.num_patterns_v, layout.head_bytes,
                      bank + pools.bank_tensor(), pools, ring);
}

// The patterns that a block appends, behind those its header counts.
absl::Status LoadAppended(const ObjectHeader& header, const Frame& frame, uint16_t* bank,
                          CudaPools& pools, UploadRing& ring) {
  const PayloadLayout layout = PayloadLayout::Of(header);
  size_t from = layout.appended;
  if ((header.flags & kFlagAppendsK) != 0) {
    uint16_t* to = bank + int64_t{header.num_patterns_k} * header.head_dim;
    PKV_RETURN_IF_ERROR(CopyPatterns(frame, from, 1, layout.appended_head_bytes, to, pools, ring));
    from += header.head_dim * sizeof(uint16_t);
  }
  if ((header.flags & kFlagAppendsV) == 0) return absl::OkStatus();
  uint16_t* to = bank + pools.bank_tensor() + int64_t{header.num_patterns_v} * header.head_dim;
  return CopyPatterns(frame, from, 1, layout.appended_head_bytes, to, pools, ring);
}

absl::Status LoadBlock(const ObjectHeader& header, const Frame& frame, int slot_index, int layer,
                       std::byte* page, CudaPools& pools, UploadRing& ring) {
  const PayloadLayout layout = PayloadLayout::Of(header);
  // Null: the page holds the block already. Or the frame came there.
  if (page != nullptr && page != frame.bytes.data()) {
    PKV_RETURN_IF_ERROR(ring.Copy(frame.bytes.first(layout.page_bytes), page, frame.on_device));
  }
  if (header.num_sinks > 0) {
    const size_t bytes = layout.sink_head_bytes * layout.num_kv_heads;
    PKV_RETURN_IF_ERROR(ring.Copy(frame.bytes.subspan(layout.sinks, bytes),
                                  pools.sinks(layer, slot_index), frame.on_device));
  }
  if ((header.flags & kFlagsAppend) == 0) return absl::OkStatus();
  return LoadAppended(header, frame, pools.bank(layer, slot_index), pools, ring);
}

absl::Status LoadWindow(const ObjectHeader& header, const Frame& frame,
                        const MutableKvTensorView& to, UploadRing& ring) {
  const size_t bytes = size_t{header.num_tokens} * header.head_dim * sizeof(uint16_t);
  const size_t pitch = to.head_stride * sizeof(uint16_t);
  const size_t heads = header.num_kv_heads;
  const std::byte* k = frame.bytes.data();
  PKV_RETURN_IF_ERROR(ring.Copy({k, to.k, bytes, 2 * bytes, pitch, heads, frame.on_device}));
  return ring.Copy({k + bytes, to.v, bytes, 2 * bytes, pitch, heads, frame.on_device});
}

// Where frames may come to device memory: blocks whose frames are pages, to their pages.
void PlaceBlocks(const CudaSlot& slot, CudaPools& pools) {
  const EnginePrefix& prefix = slot.prefix;
  const int num_layers = pools.shape().num_layers;
  std::vector<std::byte*> places(static_cast<size_t>(prefix.stream->num_objects()) * num_layers);
  for (size_t i = 0; i < prefix.fetched.size(); ++i) {
    const int block = prefix.fetched[i];
    const bool is_resident =
        block < static_cast<int>(prefix.resident.size()) && prefix.resident[block].has_value();
    const ObjectHeader& header = slot.headers[block];
    if (is_resident || static_cast<int64_t>(header.frame_bytes) > pools.page_stride()) continue;
    for (int layer = 0; layer < num_layers; ++layer) {
      places[(prefix.num_tables + i) * num_layers + layer] = pools.page(layer, prefix.pages[block]);
    }
  }
  prefix.stream->PlaceFrames(places);
}

}  // namespace

absl::Status AttachPrefix(EnginePrefix prefix, const CodecParams& params, const Digest& profile,
                          CudaPools& pools, CudaSlot& slot) {
  const KvShape& shape = pools.shape();
  // The first step adds a token.
  if (prefix.num_window_tokens >= pools.window_capacity()) {
    return absl::InvalidArgumentError(absl::StrCat("a window of ", prefix.num_window_tokens,
                                                   " tokens: this variant's hold at most ",
                                                   pools.window_capacity() - 1));
  }
  if (prefix.stream == nullptr) {
    slot.prefix = std::move(prefix);
    return absl::OkStatus();
  }
  GetStream& stream = *prefix.stream;
  PKV_RETURN_IF_ERROR(stream.WaitForManifest());
  const bool has_window = prefix.num_window_tokens > 0;
  const int expected =
      prefix.num_tables + static_cast<int>(prefix.fetched.size()) + (has_window ? 1 : 0);
  if (stream.num_objects() != expected) {
    return absl::FailedPreconditionError(absl::StrCat("the stream brings ", stream.num_objects(),
                                                      " objects, ", expected, " were asked for"));
  }
  const PlaceRules rules(shape, params, profile);
  SequenceBanks banks(KvShape{0, shape.num_kv_heads, shape.head_dim});
  for (int i = 0; i < prefix.num_tables; ++i) {
    const ObjectHeader& header = stream.header(i);
    PKV_RETURN_IF_ERROR(rules.Check(header, {ObjectKind::kTable, 0, {}}));
    banks.AddTable(header.id, header.num_patterns_k, header.num_patterns_v);
  }
  PKV_ASSIGN_OR_RETURN(slot.headers, BlockHeaders(prefix));
  // Block 0 comes for its sinks even when a page holds it: it must still be what the page holds.
  if (!prefix.resident.empty() && prefix.resident[0].has_value() &&
      *prefix.resident[0] != slot.headers[0]) {
    return absl::FailedPreconditionError(
        absl::StrCat("block ", slot.headers[0].id.ToShortHex(), " is not what its page holds"));
  }
  Digest parent;
  for (size_t i = 0; i < slot.headers.size(); ++i) {
    const ObjectHeader& header = slot.headers[i];
    PKV_RETURN_IF_ERROR(rules.Check(header, {ObjectKind::kBlock, i * kBlockTokens, parent}));
    PKV_RETURN_IF_ERROR(banks.AddBlock(header));
    parent = header.id;
  }
  if (has_window) {
    const ObjectHeader& header = stream.header(expected - 1);
    PKV_RETURN_IF_ERROR(
        rules.Check(header, {ObjectKind::kWindow, slot.headers.size() * kBlockTokens, parent}));
    if (header.num_tokens != prefix.num_window_tokens) {
      return absl::FailedPreconditionError(absl::StrCat("window ", header.id.ToShortHex(),
                                                        " holds ", header.num_tokens,
                                                        " tokens, not ", prefix.num_window_tokens));
    }
  }
  if (!slot.headers.empty()) {
    PKV_RETURN_IF_ERROR(TakeBank(banks.Find(slot.headers[0].table), pools.bank_capacity(), slot));
  }
  slot.num_window_tokens = prefix.num_window_tokens;
  slot.prefix = std::move(prefix);
  PlaceBlocks(slot, pools);
  return absl::OkStatus();
}

absl::Status LoadLayer(const CudaSlot& slot, int slot_index, int layer, CudaPools& pools,
                       UploadRing& ring) {
  const EnginePrefix& prefix = slot.prefix;
  if (prefix.stream == nullptr) return absl::OkStatus();
  GetStream& stream = *prefix.stream;
  PKV_RETURN_IF_ERROR(stream.WaitForLayer(layer));
  const auto frame = [&](int object_index) {
    return Frame{stream.frame(object_index, layer), stream.is_on_device(layer)};
  };
  for (int i = 0; i < prefix.num_tables; ++i) {
    // A table that no block refers to stays away: its patterns may not fit.
    if (stream.header(i).id != slot.table) continue;
    PKV_RETURN_IF_ERROR(
        LoadTable(stream.header(i), frame(i), pools.bank(layer, slot_index), pools, ring));
  }
  for (size_t i = 0; i < prefix.fetched.size(); ++i) {
    const int block = prefix.fetched[i];
    const bool is_resident =
        block < static_cast<int>(prefix.resident.size()) && prefix.resident[block].has_value();
    PKV_RETURN_IF_ERROR(LoadBlock(
        slot.headers[block], frame(prefix.num_tables + static_cast<int>(i)), slot_index, layer,
        is_resident ? nullptr : pools.page(layer, prefix.pages[block]), pools, ring));
  }
  if (prefix.num_window_tokens > 0) {
    const int window = stream.num_objects() - 1;
    PKV_RETURN_IF_ERROR(LoadWindow(stream.header(window), frame(window),
                                   pools.window(layer, slot_index, 0, prefix.num_window_tokens),
                                   ring));
  }
  PKV_RETURN_IF_ERROR(ring.Flush());
  // Frames may lie in the server's memory; they have been read now.
  return stream.CheckHeld();
}

}  // namespace pkv
