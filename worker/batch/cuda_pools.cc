#include "worker/batch/cuda_pools.h"

#include <algorithm>

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "kernels/device/cuda_status.h"
#include "proto/base/status_macros.h"
#include "proto/block/payload_layout.h"
#include "worker/batch/window_shift_kernels.h"

namespace pkv {
namespace {

// Patterns that a bank takes beside the mined ones: one a flushed block, 4,096 generated tokens.
constexpr int kAppendedPatterns = 32;
constexpr int64_t kPageAlignment = 128;

}  // namespace

CudaPools::CudaPools(const KvShape& shape, const CodecParams& params, const CudaPoolSizes& sizes)
    : shape_(shape), sizes_(sizes) {
  const int64_t rows = 2 * int64_t{shape.num_kv_heads} * shape.head_dim;
  page_stride_ = (PayloadLayout::OfBlock(shape, params.encoding).page_bytes + kPageAlignment - 1) /
                 kPageAlignment * kPageAlignment;
  window_capacity_ = WindowCapacity(params);
  window_ = rows * window_capacity_;
  sink_ = rows * params.num_sinks;
  if (params.encoding.has_patterns) {
    const int mined = std::max(params.num_patterns_k, params.num_patterns_v);
    const bool appends = params.append_k || params.append_v;
    bank_capacity_ = std::min(mined + (appends ? kAppendedPatterns : 0), kMaxPatterns);
  }
  bank_ = rows * bank_capacity_;
}

int CudaPools::WindowCapacity(const CodecParams& params) {
  return kBlockTokens + (params.window_rule == WindowRule::kRolling ? params.recent_tokens : 0);
}

int64_t CudaPools::PageBytes(const KvShape& shape, const CodecParams& params) {
  return shape.num_layers * CudaPools(shape, params, {}).page_stride_;
}

int64_t CudaPools::SlotBytes(const KvShape& shape, const CodecParams& params) {
  const CudaPools pools(shape, params, {});
  return shape.num_layers * (pools.window_ + pools.sink_ + pools.bank_) *
         static_cast<int64_t>(sizeof(uint16_t));
}

absl::StatusOr<CudaPools> CudaPools::Make(const KvShape& shape, const CodecParams& params,
                                          const CudaPoolSizes& sizes, void* stream) {
  if (sizes.num_slots < 1 || sizes.num_pages < 1) {
    return absl::InvalidArgumentError(absl::StrCat("num_slots ", sizes.num_slots, ", num_pages ",
                                                   sizes.num_pages, ": both at least 1"));
  }
  CudaPools pools(shape, params, sizes);
  const int64_t slots = int64_t{shape.num_layers} * (sizes.num_slots + 1);
  const struct {
    DeviceBuffer& buffer;
    int64_t bytes;
  } buffers[] = {{pools.pages_, int64_t{shape.num_layers} * sizes.num_pages * pools.page_stride_},
                 {pools.windows_, slots * pools.window_ * 2},
                 {pools.sinks_, slots * pools.sink_ * 2},
                 {pools.banks_, slots * pools.bank_ * 2}};
  for (const auto& [buffer, bytes] : buffers) {
    absl::StatusOr<DeviceBuffer> made = DeviceBuffer::Make(bytes, stream);
    if (absl::IsResourceExhausted(made.status())) {
      return absl::ResourceExhaustedError(absl::StrCat(
          sizes.num_pages, " pages of ", PageBytes(shape, params), " bytes and ", sizes.num_slots,
          " slots of ", SlotBytes(shape, params), " do not fit on the device"));
    }
    PKV_RETURN_IF_ERROR(made.status());
    buffer = *std::move(made);
  }
  // What attention reads of a page or window was written before; the padding rows' window is not.
  PKV_RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(pools.windows_.data(), 0, pools.windows_.size(),
                                                 static_cast<cudaStream_t>(stream)),
                                 "clear windows"));
  return pools;
}

MutableKvTensorView CudaPools::window(int layer, int slot, int first, int count) {
  uint16_t* k = windows_.As<uint16_t>() + At(layer, slot) * window_;
  const int64_t at = int64_t{first} * shape_.head_dim;
  return {k + at, k + window_ / 2 + at, shape_.num_kv_heads,
          count,  shape_.head_dim,      int64_t{window_capacity_} * shape_.head_dim};
}

void CudaPools::SetPools(int layer, DecodeAttentionArgs& args) {
  args.pages = page(layer, 0);
  args.page_stride = page_stride_;
  args.windows = windows_.As<uint16_t>() + At(layer, 0) * window_;
  args.window_stride = window_;
  args.window_capacity = window_capacity_;
  args.sinks = sinks(layer, 0);
  args.sink_stride = sink_;
  args.banks = bank(layer, 0);
  args.bank_stride = bank_;
  args.bank_capacity = bank_capacity_;
}

absl::Status CudaPools::DropFront(const int32_t* slots, const int32_t* num_tokens, int count,
                                  void* stream) {
  WindowShiftArgs args;
  args.windows = windows_.As<uint16_t>();
  args.layer_stride = (sizes_.num_slots + 1) * window_;
  args.window_stride = window_;
  args.num_layers = shape_.num_layers;
  args.num_tensors = 2 * shape_.num_kv_heads;
  args.capacity = window_capacity_;
  args.head_dim = shape_.head_dim;
  args.slots = slots;
  args.num_tokens = num_tokens;
  args.count = count;
  return CudaStatus(LaunchWindowShift(args, static_cast<cudaStream_t>(stream)), "shift windows");
}

}  // namespace pkv
