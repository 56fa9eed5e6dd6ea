#include "kernels/pattern/finite_check.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/device/cpu_clones.h"
#include "proto/base/float16.h"
#include "proto/base/thread_pool.h"

namespace pkv {
namespace {

PKV_CPU_CLONES bool AllFinite(const uint16_t* row, int count) {
  uint16_t bad = 0;
  for (int i = 0; i < count; ++i) bad |= IsFiniteFloat16(row[i]) ? 0 : 1;
  return bad == 0;
}

struct Place {
  int token = -1;  // -1: everything is finite
  int channel = 0;
};

Place FirstNonFinite(const uint16_t* rows, int num_tokens, int head_dim) {
  for (int token = 0; token < num_tokens; ++token) {
    const uint16_t* row = rows + int64_t{token} * head_dim;
    if (AllFinite(row, head_dim)) continue;
    for (int channel = 0; channel < head_dim; ++channel) {
      if (!IsFiniteFloat16(row[channel])) return {token, channel};
    }
  }
  return {};
}

}  // namespace

absl::Status NotFinite(const KvPlace& place, uint16_t bits) {
  return absl::InvalidArgumentError(absl::StrCat(
      place.is_k ? "K" : "V", " is ", Float16ToFloat(bits), " at kv head ", place.kv_head,
      ", token ", place.token, ", channel ", place.channel, "; must be finite"));
}

absl::Status CheckFinite(const KvTensorView& kv, ThreadPool* pool) {
  if (kv.num_tokens == 0) return absl::OkStatus();
  std::vector<Place> places(2 * static_cast<size_t>(kv.num_kv_heads));
  ParallelFor(pool, 2 * kv.num_kv_heads, [&](int i) {
    const int head = i % kv.num_kv_heads;
    const uint16_t* rows = i < kv.num_kv_heads ? kv.k_row(head, 0) : kv.v_row(head, 0);
    places[i] = FirstNonFinite(rows, kv.num_tokens, kv.head_dim);
  });
  for (int i = 0; i < 2 * kv.num_kv_heads; ++i) {
    if (places[i].token < 0) continue;
    const int head = i % kv.num_kv_heads;
    const bool is_k = i < kv.num_kv_heads;
    const Place& place = places[i];
    const uint16_t* row = is_k ? kv.k_row(head, place.token) : kv.v_row(head, place.token);
    return NotFinite({is_k, head, place.token, place.channel}, row[place.channel]);
  }
  return absl::OkStatus();
}

}  // namespace pkv
