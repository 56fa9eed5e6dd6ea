#include "worker/batch/cuda_pools.h"

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "kernels/device/cuda_status.h"
#include "proto/base/status_macros.h"
#include "worker/batch/window_shift_kernels.h"

namespace pkv {

CudaPools::CudaPools(const KvShape& shape, const CodecParams& params, const CudaPoolSizes& sizes)
    : shape_(shape), sizes_(sizes), layout_(PoolLayout::Of(shape, params)) {}

int CudaPools::WindowCapacity(const CodecParams& params) {
  return PoolLayout::Of({1, 1, 64}, params).window_capacity;
}

int64_t CudaPools::PageBytes(const KvShape& shape, const CodecParams& params) {
  return PoolLayout::Of(shape, params).PageBytes(shape);
}

int64_t CudaPools::SlotBytes(const KvShape& shape, const CodecParams& params) {
  return PoolLayout::Of(shape, params).SlotBytes(shape);
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
  } buffers[] = {
      {pools.pages_, int64_t{shape.num_layers} * sizes.num_pages * pools.layout_.page_stride},
      {pools.windows_, slots * pools.layout_.window_values * 2},
      {pools.sinks_, slots * pools.layout_.sink_values * 2},
      {pools.banks_, slots * pools.layout_.bank_values * 2}};
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
  uint16_t* k = windows_.As<uint16_t>() + At(layer, slot) * layout_.window_values;
  const int64_t at = int64_t{first} * shape_.head_dim;
  return {k + at,
          k + layout_.window_values / 2 + at,
          shape_.num_kv_heads,
          count,
          shape_.head_dim,
          int64_t{layout_.window_capacity} * shape_.head_dim};
}

void CudaPools::SetPools(int layer, DecodeAttentionArgs& args) {
  args.pages = page(layer, 0);
  args.page_stride = layout_.page_stride;
  args.windows = windows_.As<uint16_t>() + At(layer, 0) * layout_.window_values;
  args.window_stride = layout_.window_values;
  args.window_capacity = layout_.window_capacity;
  args.sinks = sinks(layer, 0);
  args.sink_stride = layout_.sink_values;
  args.banks = bank(layer, 0);
  args.bank_stride = layout_.bank_values;
  args.bank_capacity = layout_.bank_capacity;
}

absl::Status CudaPools::DropFront(const int32_t* slots, const int32_t* num_tokens, int count,
                                  void* stream) {
  WindowShiftArgs args;
  args.windows = windows_.As<uint16_t>();
  args.layer_stride = (sizes_.num_slots + 1) * layout_.window_values;
  args.window_stride = layout_.window_values;
  args.num_layers = shape_.num_layers;
  args.num_tensors = 2 * shape_.num_kv_heads;
  args.capacity = layout_.window_capacity;
  args.head_dim = shape_.head_dim;
  args.slots = slots;
  args.num_tokens = num_tokens;
  args.count = count;
  return CudaStatus(LaunchWindowShift(args, static_cast<cudaStream_t>(stream)), "shift windows");
}

}  // namespace pkv
