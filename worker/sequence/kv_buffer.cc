#include "worker/sequence/kv_buffer.h"

#include <cstddef>

#include "pkv/kernels/rotation.h"

namespace pkv {

KvBuffer::KvBuffer(int num_kv_heads, int num_tokens, int head_dim)
    : num_kv_heads_(num_kv_heads),
      num_tokens_(num_tokens),
      head_dim_(head_dim),
      k_(size_t(num_kv_heads) * num_tokens * head_dim),
      v_(k_.size()) {}

KvBuffer KvBuffer::Rotated(const KvTensorView& kv) {
  KvBuffer rotated(kv.num_kv_heads, kv.num_tokens, kv.head_dim);
  const int64_t head_size = int64_t{kv.num_tokens} * kv.head_dim;
  for (int head = 0; head < kv.num_kv_heads; ++head) {
    RotateFloat16Rows(kv.k_row(head, 0), kv.num_tokens, kv.head_dim,
                      rotated.k_.data() + head * head_size);
    RotateFloat16Rows(kv.v_row(head, 0), kv.num_tokens, kv.head_dim,
                      rotated.v_.data() + head * head_size);
  }
  return rotated;
}

MutableKvTensorView KvBuffer::view() {
  return {k_.data(),   v_.data(), num_kv_heads_,
          num_tokens_, head_dim_, int64_t{num_tokens_} * head_dim_};
}

}  // namespace pkv
