#ifndef PKV_WORKER_BATCH_POOL_LAYOUT_H_
#define PKV_WORKER_BATCH_POOL_LAYOUT_H_

#include <cstdint>

#include "pkv/kernels/codec_params.h"

namespace pkv {

// Sizes of what a decode worker keeps on a GPU, in one layer: a page for each block, and for each
// slot an fp16 window, sinks and a pattern bank. Needs no CUDA.
struct PoolLayout {
  int64_t page_stride = 0;  // bytes
  int window_capacity = 0;  // tokens: a block, and the recent ones that stay behind it
  int bank_capacity = 0;    // patterns, of K and of V; 0 without
  // fp16 values of one slot: K and V of every kv head.
  int64_t window_values = 0, sink_values = 0, bank_values = 0;

  // REQUIRES: params are valid for `shape`.
  static PoolLayout Of(const KvShape& shape, const CodecParams& params);

  // Bytes in all layers: of one page, and of one slot.
  int64_t PageBytes(const KvShape& shape) const { return shape.num_layers * page_stride; }
  int64_t SlotBytes(const KvShape& shape) const {
    return shape.num_layers * (window_values + sink_values + bank_values) *
           static_cast<int64_t>(sizeof(uint16_t));
  }
};

}  // namespace pkv

#endif  // PKV_WORKER_BATCH_POOL_LAYOUT_H_
