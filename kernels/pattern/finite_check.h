#ifndef PKV_KERNELS_PATTERN_FINITE_CHECK_H_
#define PKV_KERNELS_PATTERN_FINITE_CHECK_H_

#include <cstdint>

#include "absl/status/status.h"
#include "pkv/kernels/kv_tensor.h"

namespace pkv {

class ThreadPool;

// Where a value stands.
struct KvPlace {
  bool is_k = true;
  int kv_head = 0;
  int token = 0;
  int channel = 0;
};
// InvalidArgument: the fp16 value `bits` at `place` is no finite number.
absl::Status NotFinite(const KvPlace& place, uint16_t bits);

// InvalidArgument names the first NaN or infinity: K before V, then kv head, token, channel.
absl::Status CheckFinite(const KvTensorView& kv, ThreadPool* pool);

}  // namespace pkv

#endif  // PKV_KERNELS_PATTERN_FINITE_CHECK_H_
