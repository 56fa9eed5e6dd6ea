#ifndef PKV_KERNELS_CODEC_LAYER_PREPARE_H_
#define PKV_KERNELS_CODEC_LAYER_PREPARE_H_

// What is done to a layer on a device before it is mined, assigned and encoded.

#include <cstdint>

#include <cuda_runtime_api.h>

#include "kernels/codec/layer_encode.h"
#include "pkv/kernels/kv_tensor.h"
#include "proto/base/host_device.h"

namespace pkv {

// Rotates the rows of K and V (rotation.h): `out` gets the bits of RotateFloat16Rows(). Sets
// *has_non_finite to 1 when a value of `in` is NaN or infinite. Rows are aligned to 16 bytes.
cudaError_t LaunchRotateRows(const KvTensorView& in, const MutableKvTensorView& out,
                             uint32_t* has_non_finite, cudaStream_t stream);

// Sets *has_non_finite to 1 when a value of `kv` is NaN or infinite.
cudaError_t LaunchFiniteFlag(const KvTensorView& kv, uint32_t* has_non_finite, cudaStream_t stream);

// ArrangeSlots() of every block and head, NaN counting as -infinity. importance: [kv_head][..] of
// `head_stride` floats; slots: [block][kv_head][128]. The first block has `num_sinks` sinks, the
// others none.
struct SlotKernelArgs {
  const float* importance = nullptr;
  int64_t head_stride = 0;
  int num_blocks = 0;
  int num_kv_heads = 0;
  int num_sinks = 0;
  int num_fine = 0;
  uint8_t* slots = nullptr;
};
cudaError_t LaunchArrangeSlots(const SlotKernelArgs& args, cudaStream_t stream);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_LAYER_PREPARE_H_
