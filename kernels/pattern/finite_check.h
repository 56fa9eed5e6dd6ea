#ifndef PKV_KERNELS_PATTERN_FINITE_CHECK_H_
#define PKV_KERNELS_PATTERN_FINITE_CHECK_H_

#include "absl/status/status.h"
#include "pkv/kernels/kv_tensor.h"

namespace pkv {

class ThreadPool;

// InvalidArgument names the first NaN or infinity: K before V, then kv head, token, channel.
absl::Status CheckFinite(const KvTensorView& kv, ThreadPool* pool);

}  // namespace pkv

#endif  // PKV_KERNELS_PATTERN_FINITE_CHECK_H_
