#ifndef PKV_KERNELS_KV_TENSOR_H_
#define PKV_KERNELS_KV_TENSOR_H_

#include <cstdint>

namespace pkv {

// K and V of one layer as fp16 bits, both [kv_head][token][head_dim], K after RoPE.
//
// Rows (tokens) are contiguous; heads are head_stride elements apart. Does not own.
struct KvTensorView {
  const uint16_t* k = nullptr;
  const uint16_t* v = nullptr;
  int num_kv_heads = 0;
  int num_tokens = 0;
  int head_dim = 0;
  int64_t head_stride = 0;  // elements from one head to the next; at least num_tokens * head_dim

  const uint16_t* k_row(int kv_head, int token) const {
    return k + kv_head * head_stride + int64_t{token} * head_dim;
  }
  const uint16_t* v_row(int kv_head, int token) const {
    return v + kv_head * head_stride + int64_t{token} * head_dim;
  }
  // Tokens [begin, begin + count). REQUIRES: they are inside.
  KvTensorView Tokens(int begin, int count) const {
    return {k + int64_t{begin} * head_dim,
            v + int64_t{begin} * head_dim,
            num_kv_heads,
            count,
            head_dim,
            head_stride};
  }
};

struct MutableKvTensorView {
  uint16_t* k = nullptr;
  uint16_t* v = nullptr;
  int num_kv_heads = 0;
  int num_tokens = 0;
  int head_dim = 0;
  int64_t head_stride = 0;

  operator KvTensorView() const { return {k, v, num_kv_heads, num_tokens, head_dim, head_stride}; }
};

}  // namespace pkv

#endif  // PKV_KERNELS_KV_TENSOR_H_
