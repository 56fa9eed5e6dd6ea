#include "pkv/kernels/prefill_attention.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/attention/prefill_attention_backends.h"
#include "pkv/block/kv_shape.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

constexpr uintptr_t kAlignment = 16;  // bytes of one access

absl::Status CheckAligned(absl::string_view name, const void* pointer) {
  if (pointer == nullptr) return absl::InvalidArgumentError(absl::StrCat(name, " is null"));
  const uintptr_t rest = reinterpret_cast<uintptr_t>(pointer) % kAlignment;
  if (rest == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", rest, " bytes past a multiple of ", kAlignment));
}

absl::Status CheckStride(absl::string_view name, int64_t stride, int64_t least) {
  constexpr int64_t kMultiple = kAlignment / sizeof(uint16_t);
  if (stride >= least && stride % kMultiple == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " ", stride, " is below ", least, " or no multiple of ", kMultiple));
}

absl::Status CheckKv(const PrefillAttentionShape& shape, const PrefillAttentionArgs& args) {
  const KvTensorView& kv = args.kv;
  if (kv.num_kv_heads != shape.num_kv_heads || kv.head_dim != shape.head_dim) {
    return absl::InvalidArgumentError(absl::StrCat("kv has ", kv.num_kv_heads, " heads of ",
                                                   kv.head_dim, ", not ", shape.num_kv_heads,
                                                   " of ", shape.head_dim));
  }
  if (kv.num_tokens < args.num_queries) {
    return absl::InvalidArgumentError(
        absl::StrCat("kv.num_tokens ", kv.num_tokens, " is below num_queries ", args.num_queries));
  }
  PKV_RETURN_IF_ERROR(CheckAligned("kv.k", kv.k));
  PKV_RETURN_IF_ERROR(CheckAligned("kv.v", kv.v));
  return CheckStride("kv.head_stride", kv.head_stride, int64_t{kv.num_tokens} * kv.head_dim);
}

}  // namespace

absl::Status CheckPrefillArgs(const PrefillAttentionShape& shape,
                              const PrefillAttentionArgs& args) {
  if (args.num_queries < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_queries ", args.num_queries, " is negative"));
  }
  if (args.num_queries == 0) return absl::OkStatus();
  if (!(args.sm_scale > 0) || !std::isfinite(args.sm_scale)) {
    return absl::InvalidArgumentError(
        absl::StrCat("sm_scale ", args.sm_scale, " is not a finite number above 0"));
  }
  const int64_t row = int64_t{shape.num_qo_heads} * shape.head_dim;
  PKV_RETURN_IF_ERROR(CheckAligned("q", args.q));
  PKV_RETURN_IF_ERROR(CheckStride("q_stride", args.q_stride, row));
  PKV_RETURN_IF_ERROR(CheckAligned("out", args.out));
  PKV_RETURN_IF_ERROR(CheckStride("out_stride", args.out_stride, row));
  return CheckKv(shape, args);
}

absl::StatusOr<std::unique_ptr<PrefillAttention>> PrefillAttention::Make(
    const PrefillAttentionShape& shape, const ComputeContext& ctx) {
  PKV_RETURN_IF_ERROR(ValidateShape({1, shape.num_kv_heads, shape.head_dim}));
  if (shape.num_qo_heads <= 0 || shape.num_qo_heads % shape.num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("num_qo_heads ", shape.num_qo_heads,
                                                   " is no positive multiple of num_kv_heads ",
                                                   shape.num_kv_heads));
  }
#ifdef PKV_WITH_CUDA
  return MakePrefillAttentionCuda(shape, ctx);
#else
  return absl::UnimplementedError("device CUDA: this build has no CUDA");
#endif
}

}  // namespace pkv
