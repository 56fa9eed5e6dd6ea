#include "worker/batch/cuda_compute.h"

#include <utility>

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "kernels/device/cuda_status.h"
#include "proto/base/status_macros.h"
#include "worker/sequence/object_place.h"

namespace pkv {

CudaCompute::CudaCompute(CudaPools* pools, const CodecParams& params, const Digest& profile,
                         std::unique_ptr<CudaPrefill> prefill)
    : pools_(*pools),
      params_(params),
      profile_(profile),
      prefill_(std::move(prefill)),
      seal_(pools, params, profile, prefill_->compress_stream()) {}

absl::StatusOr<std::unique_ptr<CudaCompute>> CudaCompute::Make(std::unique_ptr<CudaPrefill> prefill,
                                                               CudaPools* pools,
                                                               const CodecParams& params,
                                                               const Digest& profile,
                                                               int max_tokens) {
  auto compute =
      std::unique_ptr<CudaCompute>(new CudaCompute(pools, params, profile, std::move(prefill)));
  PKV_ASSIGN_OR_RETURN(compute->page_ids_,
                       DeviceBuffer::Make((size_t(max_tokens) / kBlockTokens + 1) * sizeof(int32_t),
                                          compute->prefill_->compress_stream()));
  return compute;
}

absl::Status CudaCompute::CopyWindow(const KvTensorView& window, int slot_index, int layer,
                                     void* stream) {
  if (window.num_tokens == 0) return absl::OkStatus();
  const MutableKvTensorView to = pools_.window(layer, slot_index, 0, window.num_tokens);
  const size_t row = window.head_dim * sizeof(uint16_t);
  for (const auto& [from, target] : {std::pair(window.k, to.k), {window.v, to.v}}) {
    PKV_RETURN_IF_ERROR(
        CudaStatus(cudaMemcpy2DAsync(target, to.head_stride * sizeof(uint16_t), from,
                                     window.head_stride * sizeof(uint16_t), window.num_tokens * row,
                                     window.num_kv_heads, cudaMemcpyDeviceToDevice,
                                     static_cast<cudaStream_t>(stream)),
                   "copy window"));
  }
  return absl::OkStatus();
}

absl::Status CudaCompute::SealAll(int slot_index, std::span<const int32_t> tokens,
                                  std::vector<std::unique_ptr<ObjectBuilder>>* sealed,
                                  CudaSlot& slot) {
  if (slot.num_blocks() > 0 && params_.encoding.has_patterns) {
    PKV_ASSIGN_OR_RETURN(std::unique_ptr<ObjectBuilder> table, seal_.Table(slot_index, slot));
    slot.table = table->header().id;
    if (sealed != nullptr) sealed->push_back(std::move(table));
  }
  Digest parent;
  for (int i = 0; i < slot.num_blocks(); ++i) {
    PKV_ASSIGN_OR_RETURN(
        ObjectHeader header,
        BlockHeaderOf(pools_.shape(), params_, profile_, uint64_t(i) * kBlockTokens, parent,
                      tokens.subspan(size_t(i) * kBlockTokens, kBlockTokens)));
    header.table = slot.table;
    header.num_patterns_k = static_cast<uint16_t>(slot.num_patterns_k);
    header.num_patterns_v = static_cast<uint16_t>(slot.num_patterns_v);
    parent = header.id;
    slot.headers.push_back(header);
    if (sealed == nullptr) continue;
    PKV_ASSIGN_OR_RETURN(sealed->emplace_back(),
                         seal_.Block(header, slot_index, slot.prefix.pages[i], nullptr, 0));
  }
  return absl::OkStatus();
}

absl::Status CudaCompute::Run(int slot_index, std::span<const int32_t> tokens,
                              std::span<const int32_t> pages,
                              const std::function<bool()>& cancelled,
                              std::vector<std::unique_ptr<ObjectBuilder>>* sealed, CudaSlot& slot) {
  const int num_blocks = static_cast<int>(pages.size());
  const int num_window_tokens = static_cast<int>(tokens.size()) - num_blocks * kBlockTokens;
  if (num_window_tokens >= pools_.window_capacity()) {
    return absl::InvalidArgumentError(absl::StrCat("a window of ", num_window_tokens,
                                                   " tokens: this variant's hold at most ",
                                                   pools_.window_capacity() - 1));
  }
  if (pages.size() * sizeof(int32_t) <= page_ids_.size()) {  // or Run() says that it is too long
    PKV_RETURN_IF_ERROR(CudaStatus(
        cudaMemcpyAsync(page_ids_.data(), pages.data(), pages.size_bytes(), cudaMemcpyHostToDevice,
                        static_cast<cudaStream_t>(prefill_->compress_stream())),
        "upload pages"));
  }
  DeviceBank bank;
  PrefillRequest request;
  request.tokens = tokens;
  request.num_blocks = num_blocks;
  request.cancelled = cancelled;
  request.target = [&](int layer) -> absl::StatusOr<PrefillTarget> {
    bank = {pools_.bank(layer, slot_index), pools_.bank_capacity(), 0, 0};
    PrefillTarget target;
    target.pages = pools_.page(layer, 0);
    target.page_stride = pools_.page_stride();
    target.page_ids = page_ids_.As<int32_t>();
    target.sinks = pools_.sinks(layer, slot_index);
    target.bank = &bank;
    target.mine = params_.encoding.has_patterns;
    return target;
  };
  request.on_compressed = [&](int layer, const PrefillTarget&, const KvTensorView& window,
                              void* stream) {
    return CopyWindow(window, slot_index, layer, stream);
  };
  PKV_RETURN_IF_ERROR(prefill_->Run(request));
  slot.prefix.pages.assign(pages.begin(), pages.end());
  slot.num_patterns_k = bank.num_k;
  slot.num_patterns_v = bank.num_v;
  slot.num_window_tokens = num_window_tokens;
  return SealAll(slot_index, tokens, sealed, slot);
}

}  // namespace pkv
