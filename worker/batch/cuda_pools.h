#ifndef PKV_WORKER_BATCH_CUDA_POOLS_H_
#define PKV_WORKER_BATCH_CUDA_POOLS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device/device_buffer.h"
#include "pkv/block/kv_shape.h"
#include "pkv/kernels/codec_params.h"
#include "pkv/kernels/decode_attention.h"
#include "pkv/kernels/kv_tensor.h"
#include "pkv/kernels/layer_compressor.h"
#include "worker/batch/pool_layout.h"

namespace pkv {

// How many sequences a pool is for. Slot num_slots is a spare one: what padding rows write to.
struct CudaPoolSizes {
  int num_slots = 0;
  int num_pages = 0;
};

// The device memory of a decode worker's sequences, all layers: pages as shipped, and for each slot
// an fp16 window, sinks, and a bank of patterns. Does not know what stands in them.
//
//   pages    [layer][page], page_stride bytes each
//   windows  [layer][slot][K, V][kv_head][window_capacity][head_dim] fp16
//   sinks    [layer][slot][kv_head][K, V][num_sinks][head_dim] fp16
//   banks    [layer][slot][K, V][kv_head][bank_capacity][head_dim] fp16
//
// Thread-compatible.
class CudaPools {
 public:
  // Bytes that a page, and all that belongs to a slot, take over all layers.
  static int64_t PageBytes(const KvShape& shape, const CodecParams& params);
  static int64_t SlotBytes(const KvShape& shape, const CodecParams& params);
  // Tokens that a window takes: a block leaves when 128 have left the recent ones.
  static int WindowCapacity(const CodecParams& params);

  // ResourceExhausted: the device has no room for it; names the bytes.
  static absl::StatusOr<CudaPools> Make(const KvShape& shape, const CodecParams& params,
                                        const CudaPoolSizes& sizes, void* stream);

  const KvShape& shape() const { return shape_; }
  const CudaPoolSizes& sizes() const { return sizes_; }
  int64_t page_stride() const { return layout_.page_stride; }
  int window_capacity() const { return layout_.window_capacity; }
  // Patterns that a bank holds: those mined and some that flushed blocks append.
  int bank_capacity() const { return layout_.bank_capacity; }

  std::byte* page(int layer, int page) {
    return pages_.data() + (int64_t{layer} * sizes_.num_pages + page) * layout_.page_stride;
  }
  // Tokens [first, first + count) of a slot's window.
  MutableKvTensorView window(int layer, int slot, int first, int count);
  uint16_t* sinks(int layer, int slot) {
    return sinks_.As<uint16_t>() + At(layer, slot) * layout_.sink_values;
  }
  uint16_t* bank(int layer, int slot) {
    return banks_.As<uint16_t>() + At(layer, slot) * layout_.bank_values;
  }
  // Elements from K of a bank to its V.
  int64_t bank_tensor() const { return layout_.bank_values / 2; }

  // The pools of one layer, as decode attention takes them.
  void SetPools(int layer, DecodeAttentionArgs& args);

  // Drops the oldest 128 tokens of each slot's window, all layers. slots, num_tokens: [count] on
  // the device, num_tokens before.
  absl::Status DropFront(const int32_t* slots, const int32_t* num_tokens, int count, void* stream);

 private:
  CudaPools(const KvShape& shape, const CodecParams& params, const CudaPoolSizes& sizes);
  int64_t At(int layer, int slot) const { return int64_t{layer} * (sizes_.num_slots + 1) + slot; }

  KvShape shape_;
  CudaPoolSizes sizes_;
  PoolLayout layout_;
  DeviceBuffer pages_, windows_, sinks_, banks_;
};

}  // namespace pkv

#endif  // PKV_WORKER_BATCH_CUDA_POOLS_H_
