#include "pkv/kernels/block_slots.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "pkv/block/kv_shape.h"

namespace pkv {
namespace {

void CopyToken(const KvTensorView& from, int head, int from_token, int to_token,
               const MutableKvTensorView& to) {
  const int64_t at = head * to.head_stride + int64_t{to_token} * to.head_dim;
  std::copy_n(from.k_row(head, from_token), from.head_dim, to.k + at);
  std::copy_n(from.v_row(head, from_token), from.head_dim, to.v + at);
}

}  // namespace

std::vector<uint8_t> ArrangeSlots(int num_sinks, int num_fine, std::span<const float> importance) {
  std::vector<uint8_t> by_importance(kBlockTokens - num_sinks);
  std::iota(by_importance.begin(), by_importance.end(), static_cast<uint8_t>(num_sinks));
  std::stable_sort(by_importance.begin(), by_importance.end(),
                   [&](int a, int b) { return importance[a] > importance[b]; });
  std::array<bool, kBlockTokens> is_fine{};
  for (int i = 0; i < num_fine; ++i) is_fine[by_importance[i]] = true;
  std::vector<uint8_t> slots(kBlockTokens);
  std::iota(slots.begin(), slots.end(), uint8_t{0});
  std::stable_partition(slots.begin(), slots.end(), [&](int token) { return !is_fine[token]; });
  return slots;
}

void GatherSlots(const KvTensorView& kv, std::span<const uint8_t> slots,
                 const MutableKvTensorView& out) {
  for (int head = 0; head < kv.num_kv_heads; ++head) {
    for (int slot = 0; slot < kBlockTokens; ++slot) {
      CopyToken(kv, head, slots[head * kBlockTokens + slot], slot, out);
    }
  }
}

void ScatterSlots(const KvTensorView& kv, std::span<const uint8_t> slots,
                  const MutableKvTensorView& out) {
  for (int head = 0; head < kv.num_kv_heads; ++head) {
    for (int slot = 0; slot < kBlockTokens; ++slot) {
      CopyToken(kv, head, slot, slots[head * kBlockTokens + slot], out);
    }
  }
}

}  // namespace pkv
