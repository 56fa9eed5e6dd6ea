#include "kernels/attention/decode_attention_backends.h"

namespace pkv {

absl::StatusOr<std::unique_ptr<DecodeAttention>> MakeDecodeAttentionCudaCore(
    const DecodeAttentionShape& shape, const ComputeContext& ctx) {
  return absl::UnimplementedError("kCudaCore: not yet");
}

}  // namespace pkv
