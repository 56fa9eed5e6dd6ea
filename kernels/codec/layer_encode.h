#ifndef PKV_KERNELS_CODEC_LAYER_ENCODE_H_
#define PKV_KERNELS_CODEC_LAYER_ENCODE_H_

// What the encoders of one layer's blocks read and write: of a prompt, or of one block alone.

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#include "pkv/block/kv_shape.h"
#include "pkv/kernels/codec_params.h"
#include "proto/base/float16.h"
#include "proto/base/host_device.h"
#include "proto/block/payload_layout.h"

namespace pkv {

// All pointers are on the device.
struct LayerEncodeArgs {
  // Offsets in a head, and the encoding. What stands behind the heads is told below.
  PayloadLayout layout;
  int num_blocks = 0;
  // Of the first block of this launch; the others have none.
  int num_sinks = 0;
  // Shrink ratios tried, 1 for none; gain correction.
  int num_ratios_k = 1, num_ratios_v = 1;
  bool unbiased_k = false, unbiased_v = false;
  // Not kNone: `v_ids` are nearest patterns, to be dropped where the gate does not accept them.
  Gate gate_v = Gate::kNone;
  float gate_threshold = 0;  // kZTest: GateThreshold()

  // Row t of block b and head h is at k + b * block_stride + h * head_stride + t * head_dim.
  // Multiples of 8 elements, all of them.
  const uint16_t* k = nullptr;
  const uint16_t* v = nullptr;
  int64_t block_stride = 0, head_stride = 0;
  // The row that stands in a slot, [block][kv_head][128]; null: row i in slot i.
  const uint8_t* slots = nullptr;

  // Patterns of block b and head h: k_patterns + bank * bank_stride + h * k_bank_head_stride, bank
  // = bank_ids[b], or 0 without them. Rows of head_dim; multiples of 8 elements.
  const uint16_t* k_patterns = nullptr;
  const uint16_t* v_patterns = nullptr;
  int64_t k_bank_head_stride = 0, v_bank_head_stride = 0;
  // Of row t: k_ids + b * ids_block_stride + h * ids_head_stride + t; null without patterns. 255
  // for sinks.
  const uint8_t* k_ids = nullptr;
  const uint8_t* v_ids = nullptr;
  int64_t ids_block_stride = 0, ids_head_stride = 0;

  // KeyFeedback: [kv_head][step], [kv_head][step][earlier step], [kv_head][step]; null without.
  const uint8_t* k_order = nullptr;
  const int8_t* k_weights = nullptr;
  const float* k_weight_scales = nullptr;

  // For the search of K with patterns: how many there are, KeySearchBytes() of device memory, and
  // what LaunchKeySearch() makes of them.
  int num_k_patterns = 0;
  float* k_pattern_columns = nullptr;
  int k_column_stride = 0;

  // The heads of block b go to pages + page * page_stride, page = page_ids[b], or b without them.
  std::byte* pages = nullptr;
  int64_t page_stride = 0;
  const int32_t* page_ids = nullptr;
  // fp16 rows of the sinks, K [num_sinks][head_dim] and then V a head.
  uint16_t* sinks = nullptr;
  // Set to 1 when a value of K or V is NaN or infinite; null: not looked for.
  uint32_t* has_non_finite = nullptr;

  PKV_HOST_DEVICE int head_dim() const { return layout.head_dim; }
  PKV_HOST_DEVICE int num_kv_heads() const { return layout.num_kv_heads; }
  PKV_HOST_DEVICE int FirstSlot(int block) const { return block == 0 ? num_sinks : 0; }
  // First of the 128 slots of a block's head.
  PKV_HOST_DEVICE int64_t SlotsAt(int block, int head) const {
    return (static_cast<int64_t>(block) * num_kv_heads() + head) * kBlockTokens;
  }
  PKV_HOST_DEVICE int64_t RowsAt(int block, int head) const {
    return block * block_stride + head * head_stride;
  }
  PKV_HOST_DEVICE std::byte* HeadOf(int block, int head) const {
    const int64_t page = page_ids == nullptr ? block : page_ids[block];
    return pages + page * page_stride + head * layout.head_bytes;
  }
};

// K or V of one head of one block on its way into a page.
struct SlotRows {
  const uint16_t* rows;      // of the head
  const uint8_t* slots;      // [128] or null
  const uint16_t* patterns;  // of the head
  const uint8_t* ids;        // by row; null without patterns
  int head_dim;

  PKV_HOST_DEVICE static SlotRows Keys(const LayerEncodeArgs& args, int block, int head) {
    return Of(args, block, head, args.k, args.k_patterns, args.k_bank_head_stride, args.k_ids);
  }
  PKV_HOST_DEVICE static SlotRows Values(const LayerEncodeArgs& args, int block, int head) {
    return Of(args, block, head, args.v, args.v_patterns, args.v_bank_head_stride, args.v_ids);
  }

  PKV_HOST_DEVICE int RowOf(int slot) const { return slots == nullptr ? slot : slots[slot]; }
  PKV_HOST_DEVICE const uint16_t* Row(int slot) const { return rows + RowOf(slot) * head_dim; }
  PKV_HOST_DEVICE int Id(int slot) const {
    return ids == nullptr ? kRawPatternId : ids[RowOf(slot)];
  }
  PKV_HOST_DEVICE float Residual(int slot, int channel) const {
    const float value = Float16ToFloat(Row(slot)[channel]);
    const int id = Id(slot);
    return id == kRawPatternId ? value : value - Float16ToFloat(patterns[id * head_dim + channel]);
  }

 private:
  PKV_HOST_DEVICE static SlotRows Of(const LayerEncodeArgs& args, int block, int head,
                                     const uint16_t* rows, const uint16_t* patterns,
                                     int64_t bank_head_stride, const uint8_t* ids) {
    SlotRows out;
    out.rows = rows + args.RowsAt(block, head);
    out.slots = args.slots == nullptr ? nullptr : args.slots + args.SlotsAt(block, head);
    out.patterns = patterns == nullptr ? nullptr : patterns + head * bank_head_stride;
    out.ids = ids == nullptr ? nullptr
                             : ids + block * args.ids_block_stride + head * args.ids_head_stride;
    out.head_dim = args.head_dim();
    return out;
  }
};

// The part of the arguments that depends on the variant alone, without a gate.
LayerEncodeArgs EncodeArgsFor(const KvShape& shape, const CodecParams& params);

// Encodes all blocks: the heads of every page, and the sinks. Chooses the kernels that cover the
// variant. V may be given to another stream than K: then the caller has either wait for what it
// reads, and waits for both.
cudaError_t LaunchLayerEncode(const LayerEncodeArgs& args, cudaStream_t stream,
                              cudaStream_t stream_of_v);

// Its parts. Direct: scale and zero point from minimum and maximum, coarse codes only. Plain: every
// variant.
bool DirectEncodeCovers(const LayerEncodeArgs& args);
cudaError_t LaunchDirectEncode(const LayerEncodeArgs& args, cudaStream_t stream);
cudaError_t LaunchPlainKeys(const LayerEncodeArgs& args, cudaStream_t stream);
cudaError_t LaunchPlainValues(const LayerEncodeArgs& args, cudaStream_t stream);
// V alone, one group a token, with or without search, gain correction and gate; and K alone.
bool ValueSearchCovers(const LayerEncodeArgs& args);
cudaError_t LaunchValueSearch(const LayerEncodeArgs& args, cudaStream_t stream);
bool KeySearchCovers(const LayerEncodeArgs& args);
// From one channel's patterns to the next one's; a zero stands behind them.
constexpr int KeyColumnStride(int num_patterns) { return (num_patterns / 8 + 1) * 8; }
inline size_t KeySearchBytes(int num_patterns, int num_kv_heads, int head_dim) {
  return sizeof(float) * num_kv_heads * head_dim * KeyColumnStride(num_patterns);
}
cudaError_t LaunchKeySearch(const LayerEncodeArgs& args, cudaStream_t stream);
// The fp16 rows: sinks, or the whole of fp16 blocks.
cudaError_t LaunchRowCopy(const LayerEncodeArgs& args, cudaStream_t stream);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_LAYER_ENCODE_H_
