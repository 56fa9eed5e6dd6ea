#include "worker/prefill/layer_staging.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "kernels/device/cuda_status.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/block/payload_layout.h"

namespace pkv {
namespace {

constexpr int64_t kPageAlignment = 128;

absl::Status Download(void* to, const void* from, size_t bytes, void* stream) {
  if (bytes == 0) return absl::OkStatus();
  return CudaStatus(
      cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream)),
      "read layer");
}

}  // namespace

absl::StatusOr<LayerStaging> LayerStaging::Make(const KvShape& shape, const CodecParams& params,
                                                int max_blocks, void* stream) {
  LayerStaging staging(shape);
  const int64_t row_bytes = 2 * int64_t{shape.num_kv_heads} * shape.head_dim * 2;
  staging.page_bytes_ = PayloadLayout::OfBlock(shape, params.encoding).page_bytes;
  staging.page_stride_ =
      (staging.page_bytes_ + kPageAlignment - 1) / kPageAlignment * kPageAlignment;
  staging.sink_bytes_ = params.encoding.is_fp16() ? 0 : params.num_sinks * row_bytes;
  const int64_t bank_bytes = params.encoding.has_patterns ? kMaxPatterns * row_bytes : 0;
  // What a prefill leaves in the window, and room to spare.
  const int64_t window_bytes = (kBlockTokens + params.recent_tokens) * row_bytes;
  PKV_ASSIGN_OR_RETURN(staging.pages_,
                       DeviceBuffer::Make(max_blocks * staging.page_stride_, stream));
  PKV_ASSIGN_OR_RETURN(staging.sinks_, DeviceBuffer::Make(staging.sink_bytes_, stream));
  PKV_ASSIGN_OR_RETURN(staging.bank_memory_, DeviceBuffer::Make(bank_bytes, stream));
  PKV_ASSIGN_OR_RETURN(staging.host_pages_, PinnedBuffer::Make(max_blocks * staging.page_stride_));
  PKV_ASSIGN_OR_RETURN(staging.host_sinks_, PinnedBuffer::Make(staging.sink_bytes_));
  PKV_ASSIGN_OR_RETURN(staging.host_bank_, PinnedBuffer::Make(bank_bytes));
  PKV_ASSIGN_OR_RETURN(staging.host_window_, PinnedBuffer::Make(window_bytes));
  PKV_ASSIGN_OR_RETURN(staging.copied_, Event::Make());
  return staging;
}

absl::StatusOr<DeviceBank*> LayerStaging::PrepareBank(const Codebook* codebook, void* stream) {
  bank_ = {bank_memory_.As<uint16_t>(), bank_bytes() == 0 ? 0 : kMaxPatterns, 0, 0};
  if (codebook == nullptr || bank_bytes() == 0) return &bank_;
  bank_.num_k = codebook->num_k();
  bank_.num_v = codebook->num_v();
  PKV_CHECK(bank_.num_k <= kMaxPatterns && bank_.num_v <= kMaxPatterns, bank_.num_k, bank_.num_v);
  const size_t head = size_t{kMaxPatterns} * shape_.head_dim;
  auto* to = reinterpret_cast<uint16_t*>(host_bank_.data());
  for (int h = 0; h < shape_.num_kv_heads; ++h) {
    const auto k = codebook->k(h), v = codebook->v(h);
    std::memcpy(to + h * head, k.data(), k.size_bytes());
    std::memcpy(to + (shape_.num_kv_heads + h) * head, v.data(), v.size_bytes());
  }
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpyAsync(bank_memory_.data(), host_bank_.data(), bank_bytes(),
                                 cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)),
                 "upload bank"));
  return &bank_;
}

absl::Status LayerStaging::StartCopy(int num_blocks, const KvTensorView& window, void* stream) {
  PKV_RETURN_IF_ERROR(
      Download(host_pages_.data(), pages_.data(), num_blocks * page_stride_, stream));
  if (num_blocks > 0) {
    PKV_RETURN_IF_ERROR(Download(host_sinks_.data(), sinks_.data(), sink_bytes_, stream));
    PKV_RETURN_IF_ERROR(Download(host_bank_.data(), bank_memory_.data(), bank_bytes(), stream));
  }
  // A window's frame: per head K, then V.
  const size_t bytes = size_t(window.num_tokens) * window.head_dim * sizeof(uint16_t);
  if (2 * bytes * window.num_kv_heads > host_window_.size()) {
    return absl::InternalError(absl::StrCat("a window of ", window.num_tokens, " tokens"));
  }
  std::byte* to = host_window_.data();
  for (const uint16_t* from : {window.k, window.v}) {
    if (bytes == 0) break;
    PKV_RETURN_IF_ERROR(
        CudaStatus(cudaMemcpy2DAsync(to, 2 * bytes, from, window.head_stride * sizeof(uint16_t),
                                     bytes, window.num_kv_heads, cudaMemcpyDeviceToHost,
                                     static_cast<cudaStream_t>(stream)),
                   "read window"));
    to += bytes;
  }
  return copied_.Record(stream);
}

void LayerStaging::FillTable(std::span<std::byte> frame) const {
  const size_t row = shape_.head_dim * sizeof(uint16_t);
  std::byte* to = frame.data();
  for (int h = 0; h < shape_.num_kv_heads; ++h) {
    const std::byte* k = host_bank_.data() + h * kMaxPatterns * row;
    std::memcpy(to, k, bank_.num_k * row);
    to += bank_.num_k * row;
    std::memcpy(to, k + shape_.num_kv_heads * kMaxPatterns * row, bank_.num_v * row);
    to += bank_.num_v * row;
  }
}

absl::Status LayerStaging::WaitAndFill(bool at_start, const KvSequence::LayerFrames& frames) {
  PKV_RETURN_IF_ERROR(copied_.Synchronize());
  for (size_t i = 0; i < frames.blocks.size(); ++i) {
    const std::span<std::byte> frame = frames.blocks[i];
    std::memcpy(frame.data(), host_pages_.data() + i * page_stride_, page_bytes_);
    if (i == 0 && at_start && sink_bytes_ > 0) {
      std::memcpy(frame.data() + page_bytes_, host_sinks_.data(), sink_bytes_);
    }
  }
  if (!frames.table.empty()) FillTable(frames.table);
  if (!frames.window.empty()) {
    PKV_CHECK(frames.window.size() <= host_window_.size(), frames.window.size());
    std::memcpy(frames.window.data(), host_window_.data(), frames.window.size());
  }
  return absl::OkStatus();
}

}  // namespace pkv
