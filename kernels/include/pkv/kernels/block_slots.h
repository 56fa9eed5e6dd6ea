#ifndef PKV_KERNELS_BLOCK_SLOTS_H_
#define PKV_KERNELS_BLOCK_SLOTS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "pkv/kernels/kv_tensor.h"

namespace pkv {

// Which token stands in which row ("slot") of a block. Attention over a block does not depend on
// the order, so the block does not store it; K and V of a kv head share it.

// Slots of one kv head: the sinks, then the other tokens in their order, then in their order the
// `num_fine` tokens of the largest importance, ties to the lower token. importance: [128],
// numbers or infinities. With num_fine 0 slot i holds token i. REQUIRES: num_sinks + num_fine <=
// 128.
std::vector<uint8_t> ArrangeSlots(int num_sinks, int num_fine, std::span<const float> importance);

// Copies the 128 tokens of `kv` into the slots' order. slots: [kv_head][128]. out: [kv_head][128]
// [head_dim], heads in a row.
void GatherSlots(const KvTensorView& kv, std::span<const uint8_t> slots,
                 const MutableKvTensorView& out);
// The inverse.
void ScatterSlots(const KvTensorView& kv, std::span<const uint8_t> slots,
                  const MutableKvTensorView& out);

}  // namespace pkv

#endif  // PKV_KERNELS_BLOCK_SLOTS_H_
