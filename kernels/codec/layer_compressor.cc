#include "pkv/kernels/layer_compressor.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/codec/layer_compressor_backends.h"
#include "pkv/block/aligned_buffer.h"
#include "proto/base/status_macros.h"
#include "proto/block/payload_layout.h"

namespace pkv {
namespace {

constexpr uintptr_t kRowAlignment = 16;  // bytes that a lane loads

absl::Status CheckTensor(const KvShape& shape, const KvTensorView& kv, int min_tokens,
                         int max_tokens) {
  if (kv.num_kv_heads != shape.num_kv_heads || kv.head_dim != shape.head_dim) {
    return absl::InvalidArgumentError(absl::StrCat("kv has ", kv.num_kv_heads, " kv heads of ",
                                                   kv.head_dim, ", not ", shape.num_kv_heads,
                                                   " of ", shape.head_dim));
  }
  if (kv.num_tokens < min_tokens || kv.num_tokens > max_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("kv tokens ", kv.num_tokens, " not in ", min_tokens, "..", max_tokens));
  }
  if (kv.head_stride < int64_t{kv.num_tokens} * kv.head_dim || kv.head_stride % 8 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("kv head_stride ", kv.head_stride,
                                                   " is no multiple of 8 from ",
                                                   int64_t{kv.num_tokens} * kv.head_dim, " up"));
  }
  return absl::OkStatus();
}

absl::Status CheckPointer(absl::string_view name, const void* pointer, uintptr_t alignment) {
  if (pointer == nullptr) return absl::InvalidArgumentError(absl::StrCat(name, " is null"));
  const uintptr_t rest = reinterpret_cast<uintptr_t>(pointer) % alignment;
  if (rest == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", rest, " bytes past a multiple of ", alignment));
}

absl::Status CheckFeedback(const DeviceKeyFeedback& feedback) {
  if (feedback.order == nullptr) return absl::OkStatus();
  PKV_RETURN_IF_ERROR(CheckPointer("feedback weights", feedback.weights, kRowAlignment));
  return CheckPointer("feedback scales", feedback.scales, alignof(float));
}

absl::Status CheckBank(const CodecParams& params, const DeviceBank* bank, int needed) {
  if (!params.encoding.has_patterns) return absl::OkStatus();
  PKV_RETURN_IF_ERROR(CheckPointer("bank", bank, 1));
  PKV_RETURN_IF_ERROR(CheckPointer("bank patterns", bank->patterns, kRowAlignment));
  if (bank->capacity > kMaxPatterns || bank->capacity < needed || bank->num_k > bank->capacity ||
      bank->num_v > bank->capacity) {
    return absl::InvalidArgumentError(absl::StrCat("bank capacity ", bank->capacity, " not in ",
                                                   std::max({needed, bank->num_k, bank->num_v}),
                                                   "..", kMaxPatterns));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckLayer(const KvShape& shape, const CodecParams& params, int max_tokens,
                        const LayerCompression& layer) {
  PKV_RETURN_IF_ERROR(CheckTensor(shape, layer.kv, 0, max_tokens));
  if (layer.kv.num_tokens == 0) return absl::OkStatus();
  PKV_RETURN_IF_ERROR(CheckPointer("k", layer.kv.k, kRowAlignment));
  PKV_RETURN_IF_ERROR(CheckPointer("v", layer.kv.v, kRowAlignment));
  PKV_RETURN_IF_ERROR(CheckFeedback(layer.feedback));
  const int mined = layer.mine ? std::max(params.num_patterns_k, params.num_patterns_v) : 0;
  PKV_RETURN_IF_ERROR(CheckBank(params, layer.bank, mined));
  if (layer.kv.num_tokens < kBlockTokens) return absl::OkStatus();
  PKV_RETURN_IF_ERROR(CheckPointer("pages", layer.pages, kFrameAlignment));
  const int64_t page_bytes = PayloadLayout::OfBlock(shape, params.encoding).page_bytes;
  if (layer.page_stride < page_bytes || layer.page_stride % kFrameAlignment != 0) {
    return absl::InvalidArgumentError(absl::StrCat("page_stride ", layer.page_stride,
                                                   " is no multiple of ", kFrameAlignment, " from ",
                                                   page_bytes, " up"));
  }
  if (!layer.at_start || params.num_sinks == 0) return absl::OkStatus();
  return CheckPointer("sinks", layer.sinks, kFrameAlignment);
}

absl::Status CheckFlush(const KvShape& shape, const CodecParams& params, const WindowFlush& flush) {
  PKV_RETURN_IF_ERROR(CheckTensor(shape, flush.kv, kBlockTokens, kBlockTokens));
  PKV_RETURN_IF_ERROR(CheckPointer("k", flush.kv.k, kRowAlignment));
  PKV_RETURN_IF_ERROR(CheckPointer("v", flush.kv.v, kRowAlignment));
  PKV_RETURN_IF_ERROR(CheckFeedback(flush.feedback));
  PKV_RETURN_IF_ERROR(CheckBank(params, flush.bank, 0));
  if (params.encoding.has_patterns) {
    const int num_k = flush.bank->num_k + (params.append_k ? 1 : 0);
    const int num_v = flush.bank->num_v + (params.append_v ? 1 : 0);
    PKV_RETURN_IF_ERROR(
        CheckBank(params, flush.bank, std::min(std::max(num_k, num_v), kMaxPatterns)));
  }
  return CheckPointer("page", flush.page, kFrameAlignment);
}

absl::StatusOr<std::unique_ptr<LayerCompressor>> LayerCompressor::Make(const KvShape& shape,
                                                                       const CodecParams& params,
                                                                       int max_tokens,
                                                                       const ComputeContext& ctx) {
  PKV_RETURN_IF_ERROR(params.Validate(shape));
  if (max_tokens < kBlockTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_tokens ", max_tokens, " is below ", kBlockTokens));
  }
#ifdef PKV_WITH_CUDA
  return MakeLayerCompressorCuda(shape, params, max_tokens, ctx);
#else
  return absl::UnimplementedError("LayerCompressor needs a build with CUDA");
#endif
}

}  // namespace pkv
