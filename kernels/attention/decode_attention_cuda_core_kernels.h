#ifndef PKV_KERNELS_ATTENTION_DECODE_ATTENTION_CUDA_CORE_KERNELS_H_
#define PKV_KERNELS_ATTENTION_DECODE_ATTENTION_CUDA_CORE_KERNELS_H_

#include <cuda_runtime_api.h>

#include "pkv/kernels/decode_attention.h"
#include "proto/block/payload_layout.h"

namespace pkv {

// What the kernel knows. `page` is the layout of a page, without sinks: those are in args.sinks.
struct CudaCoreLaunch {
  DecodeAttentionArgs args;
  PayloadLayout page;
  int num_qo_heads = 0;
  int num_sinks = 0;
  QueryType query_type = QueryType::kFloat16;
};

cudaError_t LaunchDecodeAttentionCudaCore(const CudaCoreLaunch& launch, cudaStream_t stream);

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_ATTENTION_CUDA_CORE_KERNELS_H_
