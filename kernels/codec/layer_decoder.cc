#include "pkv/kernels/layer_decoder.h"

#include "absl/strings/str_cat.h"
#include "kernels/codec/layer_decoder_backends.h"
#include "pkv/block/aligned_buffer.h"
#include "proto/base/status_macros.h"
#include "proto/block/payload_layout.h"

namespace pkv {
namespace {

constexpr uintptr_t kRowAlignment = 16;  // bytes that a lane loads and stores

absl::Status CheckPointer(absl::string_view name, const void* pointer, uintptr_t alignment) {
  if (pointer == nullptr) return absl::InvalidArgumentError(absl::StrCat(name, " is null"));
  const uintptr_t rest = reinterpret_cast<uintptr_t>(pointer) % alignment;
  if (rest == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", rest, " bytes past a multiple of ", alignment));
}

absl::Status CheckOut(const KvShape& shape, int num_blocks, const MutableKvTensorView& out) {
  if (out.num_kv_heads != shape.num_kv_heads || out.head_dim != shape.head_dim) {
    return absl::InvalidArgumentError(absl::StrCat("out has ", out.num_kv_heads, " kv heads of ",
                                                   out.head_dim, ", not ", shape.num_kv_heads,
                                                   " of ", shape.head_dim));
  }
  if (out.num_tokens != num_blocks * kBlockTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("out tokens ", out.num_tokens, ", not those of ", num_blocks, " blocks"));
  }
  if (out.head_stride < int64_t{out.num_tokens} * out.head_dim || out.head_stride % 8 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("out head_stride ", out.head_stride,
                                                   " is no multiple of 8 from ",
                                                   int64_t{out.num_tokens} * out.head_dim, " up"));
  }
  return absl::OkStatus();
}

absl::Status CheckBank(const DeviceBank* bank) {
  PKV_RETURN_IF_ERROR(CheckPointer("bank", bank, 1));
  PKV_RETURN_IF_ERROR(CheckPointer("bank patterns", bank->patterns, kRowAlignment));
  if (bank->capacity >= 0 && bank->capacity <= kMaxPatterns) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("bank capacity ", bank->capacity, " not in 0..", kMaxPatterns));
}

}  // namespace

absl::Status CheckLayerDecode(const KvShape& shape, const CodecParams& params,
                              const LayerDecode& layer) {
  if (layer.num_blocks < 0 || layer.num_blocks > kMaxDecodedBlocks) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_blocks ", layer.num_blocks, " not in 0..", kMaxDecodedBlocks));
  }
  PKV_RETURN_IF_ERROR(CheckOut(shape, layer.num_blocks, layer.out));
  if (layer.num_blocks == 0) return absl::OkStatus();
  PKV_RETURN_IF_ERROR(CheckPointer("k", layer.out.k, kRowAlignment));
  PKV_RETURN_IF_ERROR(CheckPointer("v", layer.out.v, kRowAlignment));
  PKV_RETURN_IF_ERROR(CheckPointer("pages", layer.pages, kFrameAlignment));
  const int64_t page_bytes = PayloadLayout::OfBlock(shape, params.encoding).page_bytes;
  if (layer.page_stride < page_bytes || layer.page_stride % kFrameAlignment != 0) {
    return absl::InvalidArgumentError(absl::StrCat("page_stride ", layer.page_stride,
                                                   " is no multiple of ", kFrameAlignment, " from ",
                                                   page_bytes, " up"));
  }
  if (params.encoding.has_patterns) PKV_RETURN_IF_ERROR(CheckBank(layer.bank));
  if (params.num_sinks == 0) return absl::OkStatus();
  return CheckPointer("sinks", layer.sinks, kFrameAlignment);
}

absl::StatusOr<std::unique_ptr<LayerDecoder>> LayerDecoder::Make(
    const KvShape& shape, const CodecParams& params, [[maybe_unused]] const ComputeContext& ctx) {
  PKV_RETURN_IF_ERROR(params.Validate(shape));
#ifdef PKV_WITH_CUDA
  return MakeLayerDecoderCuda(shape, params);
#else
  return absl::UnimplementedError("LayerDecoder needs a build with CUDA");
#endif
}

}  // namespace pkv
