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

// Rows of `row_bytes`, from one memory of the device to another.
absl::Status CopyRows(std::byte* to, size_t to_pitch, const void* from, size_t from_pitch,
                      size_t row_bytes, size_t count, void* stream) {
  if (row_bytes == 0 || count == 0) return absl::OkStatus();
  return CudaStatus(cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, row_bytes, count,
                                      cudaMemcpyDeviceToDevice, static_cast<cudaStream_t>(stream)),
                    "copy frames");
}

// The rest of each of `count` frames, behind their first `used` bytes.
absl::Status ClearPadding(std::byte* frames, size_t frame_bytes, size_t used, size_t count,
                          void* stream) {
  if (used == frame_bytes || count == 0) return absl::OkStatus();
  return CudaStatus(cudaMemset2DAsync(frames + used, frame_bytes, 0, frame_bytes - used, count,
                                      static_cast<cudaStream_t>(stream)),
                    "clear padding");
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

absl::Status LayerStaging::CopyFrames(bool at_start, const KvTensorView& window,
                                      const KvSequence::LayerFrames& to, void* stream) const {
  const std::span<const std::span<std::byte>> blocks = to.blocks;
  for (size_t begin = 0, end; begin < blocks.size(); begin = end) {
    // Frames of one size that follow one another.
    const size_t bytes = blocks[begin].size();
    end = begin + 1;
    while (end < blocks.size() && blocks[end].size() == bytes &&
           blocks[end].data() == blocks[end - 1].data() + bytes) {
      ++end;
    }
    std::byte* const first = blocks[begin].data();
    PKV_RETURN_IF_ERROR(ClearPadding(first, bytes, page_bytes_, end - begin, stream));
    PKV_RETURN_IF_ERROR(CopyRows(first, bytes, pages_.data() + begin * page_stride_, page_stride_,
                                 page_bytes_, end - begin, stream));
  }
  if (at_start && !blocks.empty()) {
    PKV_RETURN_IF_ERROR(CopyRows(blocks[0].data() + page_bytes_, sink_bytes_, sinks_.data(),
                                 sink_bytes_, sink_bytes_, 1, stream));
  }
  const size_t row = shape_.head_dim * sizeof(uint16_t);
  const size_t heads = shape_.num_kv_heads;
  if (!to.table.empty()) {
    const size_t k_bytes = bank_.num_k * row, v_bytes = bank_.num_v * row;
    const size_t from_pitch = kMaxPatterns * row, to_pitch = k_bytes + v_bytes;
    PKV_RETURN_IF_ERROR(
        ClearPadding(to.table.data(), to.table.size(), heads * to_pitch, 1, stream));
    PKV_RETURN_IF_ERROR(CopyRows(to.table.data(), to_pitch, bank_memory_.data(), from_pitch,
                                 k_bytes, heads, stream));
    PKV_RETURN_IF_ERROR(CopyRows(to.table.data() + k_bytes, to_pitch,
                                 bank_memory_.data() + heads * from_pitch, from_pitch, v_bytes,
                                 heads, stream));
  }
  if (to.window.empty()) return absl::OkStatus();
  const size_t bytes = window.num_tokens * row, from_pitch = window.head_stride * sizeof(uint16_t);
  PKV_RETURN_IF_ERROR(
      ClearPadding(to.window.data(), to.window.size(), 2 * bytes * heads, 1, stream));
  PKV_RETURN_IF_ERROR(
      CopyRows(to.window.data(), 2 * bytes, window.k, from_pitch, bytes, heads, stream));
  return CopyRows(to.window.data() + bytes, 2 * bytes, window.v, from_pitch, bytes, heads, stream);
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
