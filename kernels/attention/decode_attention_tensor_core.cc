#include "kernels/attention/decode_attention_backends.h"

namespace pkv {

absl::StatusOr<std::unique_ptr<DecodeAttention>> MakeDecodeAttentionTensorCore(
    const DecodeAttentionShape& shape, const ComputeContext& ctx) {
  return absl::UnimplementedError("kTensorCore: not yet");
}

}  // namespace pkv
