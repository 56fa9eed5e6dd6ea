#include "pkv/kernels/decode_attention.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/attention/decode_attention_backends.h"
#include "proto/base/status_macros.h"
#include "proto/block/payload_layout.h"

namespace pkv {
namespace {

constexpr int kTensorCoreHeads = 8;  // query heads a kv head: the columns of one mma
constexpr uintptr_t kPoolAlignment = 128;

absl::Status CheckShape(const DecodeAttentionShape& shape) {
  const KvShape kv = {1, shape.num_kv_heads, shape.head_dim};
  PKV_RETURN_IF_ERROR(ValidateShape(kv));
  PKV_RETURN_IF_ERROR(ValidateEncoding(kv, shape.encoding));
  if (shape.num_qo_heads <= 0 || shape.num_qo_heads % shape.num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("num_qo_heads ", shape.num_qo_heads,
                                                   " is no positive multiple of num_kv_heads ",
                                                   shape.num_kv_heads));
  }
  const int max_sinks = shape.encoding.is_fp16() ? 0 : kMaxSinks;
  if (shape.num_sinks < 0 || shape.num_sinks > max_sinks) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_sinks ", shape.num_sinks, " not in 0..", max_sinks));
  }
  return absl::OkStatus();
}

absl::Status CheckForTensorCore(const DecodeAttentionShape& shape) {
  const int heads = shape.num_qo_heads / shape.num_kv_heads;
  if (heads > kTensorCoreHeads) {
    return absl::UnimplementedError(
        absl::StrCat(heads, " query heads a kv head: kTensorCore takes ", kTensorCoreHeads));
  }
  if (shape.encoding.bits_k != shape.encoding.bits_v) {
    return absl::UnimplementedError(absl::StrCat("bits_k ", shape.encoding.bits_k, ", bits_v ",
                                                 shape.encoding.bits_v,
                                                 ": kTensorCore takes equal ones"));
  }
  return absl::OkStatus();
}

absl::Status CheckPointer(absl::string_view name, const void* pointer) {
  if (pointer != nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " is null"));
}

absl::Status CheckAligned(absl::string_view name, const void* pointer, uintptr_t alignment) {
  PKV_RETURN_IF_ERROR(CheckPointer(name, pointer));
  const uintptr_t rest = reinterpret_cast<uintptr_t>(pointer) % alignment;
  if (rest == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", rest, " bytes past a multiple of ", alignment));
}

// `multiple` 0: any.
absl::Status CheckStride(absl::string_view name, int64_t stride, int64_t least, int64_t multiple) {
  if (stride >= least && (multiple == 0 || stride % multiple == 0)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " ", stride, " is below ", least,
                   multiple == 0 ? "" : absl::StrCat(" or no multiple of ", multiple)));
}

absl::Status CheckPools(const DecodeAttentionShape& shape, const DecodeAttentionArgs& args) {
  const PayloadLayout page =
      PayloadLayout::OfBlock({1, shape.num_kv_heads, shape.head_dim}, shape.encoding);
  PKV_RETURN_IF_ERROR(CheckAligned("pages", args.pages, kPoolAlignment));
  PKV_RETURN_IF_ERROR(CheckStride("page_stride", args.page_stride, page.page_bytes,
                                  static_cast<int64_t>(kPoolAlignment)));
  PKV_RETURN_IF_ERROR(CheckPointer("block_table", args.block_table));
  PKV_RETURN_IF_ERROR(CheckPointer("num_blocks", args.num_blocks));
  PKV_RETURN_IF_ERROR(CheckStride("block_table_stride", args.block_table_stride, 0, 0));
  const int64_t rows = 2 * int64_t{shape.num_kv_heads} * shape.head_dim;
  // Rows are read 16 bytes at a time.
  constexpr int64_t kRowAlignment = 8;
  PKV_RETURN_IF_ERROR(CheckAligned("windows", args.windows, 16));
  PKV_RETURN_IF_ERROR(
      CheckStride("window_stride", args.window_stride, rows * args.window_capacity, kRowAlignment));
  PKV_RETURN_IF_ERROR(CheckPointer("window_ids", args.window_ids));
  PKV_RETURN_IF_ERROR(CheckPointer("num_window_tokens", args.num_window_tokens));
  if ((args.token_k == nullptr) != (args.token_v == nullptr)) {
    return absl::InvalidArgumentError(args.token_k == nullptr ? "token_v without token_k"
                                                              : "token_k without token_v");
  }
  if (shape.num_sinks > 0) {
    PKV_RETURN_IF_ERROR(CheckAligned("sinks", args.sinks, 16));
    PKV_RETURN_IF_ERROR(
        CheckStride("sink_stride", args.sink_stride, rows * shape.num_sinks, kRowAlignment));
    PKV_RETURN_IF_ERROR(CheckPointer("sink_ids", args.sink_ids));
  }
  if (!shape.encoding.has_patterns) return absl::OkStatus();
  if (args.bank_capacity < 0 || args.bank_capacity > kMaxPatterns) {
    return absl::InvalidArgumentError(
        absl::StrCat("bank_capacity ", args.bank_capacity, " not in 0..", kMaxPatterns));
  }
  PKV_RETURN_IF_ERROR(CheckAligned("banks", args.banks, 16));
  PKV_RETURN_IF_ERROR(
      CheckStride("bank_stride", args.bank_stride, rows * args.bank_capacity, kRowAlignment));
  PKV_RETURN_IF_ERROR(CheckPointer("bank_ids", args.bank_ids));
  return CheckPointer("num_patterns", args.num_patterns);
}

}  // namespace

absl::Status CheckDecodeArgs(const DecodeAttentionShape& shape, const DecodeAttentionArgs& args) {
  if (args.batch < 0) {
    return absl::InvalidArgumentError(absl::StrCat("batch ", args.batch, " is negative"));
  }
  if (args.batch == 0) return absl::OkStatus();
  if (!(args.sm_scale > 0) || !std::isfinite(args.sm_scale)) {
    return absl::InvalidArgumentError(
        absl::StrCat("sm_scale ", args.sm_scale, " is not a finite number above 0"));
  }
  PKV_RETURN_IF_ERROR(CheckAligned("q", args.q, 16));
  PKV_RETURN_IF_ERROR(CheckAligned("out", args.out, 16));
  return CheckPools(shape, args);
}

absl::StatusOr<std::unique_ptr<DecodeAttention>> DecodeAttention::Make(
    const DecodeAttentionShape& shape, const ComputeContext& ctx) {
  PKV_RETURN_IF_ERROR(CheckShape(shape));
  if (shape.kernel == DecodeKernel::kTensorCore) PKV_RETURN_IF_ERROR(CheckForTensorCore(shape));
#ifdef PKV_WITH_CUDA
  return shape.kernel == DecodeKernel::kTensorCore ? MakeDecodeAttentionTensorCore(shape, ctx)
                                                   : MakeDecodeAttentionCudaCore(shape, ctx);
#else
  return absl::UnimplementedError("device CUDA: this build has no CUDA");
#endif
}

}  // namespace pkv
