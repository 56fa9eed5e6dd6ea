#ifndef PKV_KERNELS_CODEC_BLOCK_CODEC_KERNELS_H_
#define PKV_KERNELS_CODEC_BLOCK_CODEC_KERNELS_H_

#include <cuda_runtime_api.h>

#include "pkv/kernels/kv_tensor.h"

namespace pkv {

// Of a block on the device: index of the first value that is NaN or infinity, ((is_v * num_kv_heads
// + kv_head) * 128 + token) * head_dim + channel. `place` holds UINT64_MAX before and, when all are
// finite, after.
cudaError_t LaunchFiniteCheck(const KvTensorView& kv, unsigned long long* place,
                              cudaStream_t stream);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_BLOCK_CODEC_KERNELS_H_
