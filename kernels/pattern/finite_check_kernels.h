#ifndef PKV_KERNELS_PATTERN_FINITE_CHECK_KERNELS_H_
#define PKV_KERNELS_PATTERN_FINITE_CHECK_KERNELS_H_

#include <cuda_runtime_api.h>

#include "pkv/kernels/kv_tensor.h"

namespace pkv {

// Enqueues the search for the first value that is NaN or infinity and returns. `place`, on the
// device, becomes the least of what it was and ((is_v * num_kv_heads + kv_head) * num_tokens +
// token) * head_dim + channel of such values.
cudaError_t LaunchFindNonFinite(const KvTensorView& kv, unsigned long long* place,
                                cudaStream_t stream);

}  // namespace pkv

#endif  // PKV_KERNELS_PATTERN_FINITE_CHECK_KERNELS_H_
