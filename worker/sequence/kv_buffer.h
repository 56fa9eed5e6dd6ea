#ifndef PKV_WORKER_SEQUENCE_KV_BUFFER_H_
#define PKV_WORKER_SEQUENCE_KV_BUFFER_H_

#include <cstdint>
#include <vector>

#include "pkv/kernels/kv_tensor.h"

namespace pkv {

// Owns K and V of one layer, fp16: [kv_head][token][head_dim] each, heads in a row.
//
// Thread-compatible.
class KvBuffer {
 public:
  KvBuffer() = default;
  KvBuffer(int num_kv_heads, int num_tokens, int head_dim);
  // A rotated copy (rotation.h).
  static KvBuffer Rotated(const KvTensorView& kv);

  // Valid until the buffer moves.
  MutableKvTensorView view();

 private:
  int num_kv_heads_ = 0, num_tokens_ = 0, head_dim_ = 0;
  std::vector<uint16_t> k_, v_;
};

}  // namespace pkv

#endif  // PKV_WORKER_SEQUENCE_KV_BUFFER_H_
