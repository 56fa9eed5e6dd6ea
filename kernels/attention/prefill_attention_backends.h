#ifndef PKV_KERNELS_ATTENTION_PREFILL_ATTENTION_BACKENDS_H_
#define PKV_KERNELS_ATTENTION_PREFILL_ATTENTION_BACKENDS_H_

#include <memory>

#include "absl/status/statusor.h"
#include "pkv/kernels/prefill_attention.h"

namespace pkv {

// What PrefillAttention::Make() dispatches to; built with CUDA only. REQUIRES: the shape was
// checked. Run() checks its arguments with CheckPrefillArgs().
absl::StatusOr<std::unique_ptr<PrefillAttention>> MakePrefillAttentionCuda(
    const PrefillAttentionShape& shape, const ComputeContext& ctx);

// InvalidArgument: what can be seen of `args` without reading device memory is wrong.
absl::Status CheckPrefillArgs(const PrefillAttentionShape& shape, const PrefillAttentionArgs& args);

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_PREFILL_ATTENTION_BACKENDS_H_
