#ifndef PKV_KERNELS_ATTENTION_DECODE_ATTENTION_BACKENDS_H_
#define PKV_KERNELS_ATTENTION_DECODE_ATTENTION_BACKENDS_H_

#include <memory>

#include "absl/status/statusor.h"
#include "pkv/kernels/decode_attention.h"

namespace pkv {

// What DecodeAttention::Make() dispatches to; built with CUDA only. REQUIRES: the shape was
// checked. Run() of both checks its arguments with CheckDecodeArgs().
absl::StatusOr<std::unique_ptr<DecodeAttention>> MakeDecodeAttentionTensorCore(
    const DecodeAttentionShape& shape, const ComputeContext& ctx);
absl::StatusOr<std::unique_ptr<DecodeAttention>> MakeDecodeAttentionCudaCore(
    const DecodeAttentionShape& shape, const ComputeContext& ctx);

// InvalidArgument: what can be seen of `args` without reading device memory is wrong.
absl::Status CheckDecodeArgs(const DecodeAttentionShape& shape, const DecodeAttentionArgs& args);

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_ATTENTION_BACKENDS_H_
