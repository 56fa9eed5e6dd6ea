#include "worker/batch/cuda_seal.h"

#include <utility>

#include <cuda_runtime_api.h>

#include "kernels/device/cuda_status.h"
#include "proto/base/status_macros.h"
#include "proto/block/payload_layout.h"
#include "worker/sequence/object_place.h"

namespace pkv {
namespace {

absl::StatusOr<std::unique_ptr<ObjectBuilder>> WaitAndSeal(ObjectBuilder builder, void* stream) {
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "read object"));
  PKV_RETURN_IF_ERROR(builder.Seal());
  return std::make_unique<ObjectBuilder>(std::move(builder));
}

}  // namespace

absl::StatusOr<std::unique_ptr<ObjectBuilder>> CudaSeal::Table(int slot_index,
                                                               const CudaSlot& slot) const {
  ObjectHeader header = HeaderOf(ObjectKind::kTable, pools_.shape(), params_, profile_);
  header.num_patterns_k = static_cast<uint16_t>(slot.num_patterns_k);
  header.num_patterns_v = static_cast<uint16_t>(slot.num_patterns_v);
  PKV_ASSIGN_OR_RETURN(ObjectBuilder builder, ObjectBuilder::Make(header));
  const PayloadLayout layout = PayloadLayout::Of(header);
  const size_t row = header.head_dim * sizeof(uint16_t);
  for (int layer = 0; layer < header.num_layers; ++layer) {
    std::byte* to = builder.frame(layer).data();
    const uint16_t* from = pools_.bank(layer, slot_index);
    for (const int count : {slot.num_patterns_k, slot.num_patterns_v}) {
      PKV_RETURN_IF_ERROR(
          CudaStatus(cudaMemcpy2DAsync(to, layout.head_bytes, from, pools_.bank_capacity() * row,
                                       count * row, header.num_kv_heads, cudaMemcpyDeviceToHost,
                                       static_cast<cudaStream_t>(stream_)),
                     "read bank"));
      to += count * row;
      from += pools_.bank_tensor();
    }
  }
  return WaitAndSeal(std::move(builder), stream_);
}

absl::StatusOr<std::unique_ptr<ObjectBuilder>> CudaSeal::Block(const ObjectHeader& header,
                                                               int slot_index, int page,
                                                               const uint16_t* appended,
                                                               int64_t appended_stride) const {
  PKV_ASSIGN_OR_RETURN(ObjectBuilder builder, ObjectBuilder::Make(header));
  const PayloadLayout layout = PayloadLayout::Of(header);
  for (int layer = 0; layer < header.num_layers; ++layer) {
    std::byte* frame = builder.frame(layer).data();
    const auto read = [&](const void* from, int64_t at, int64_t bytes) {
      return CudaStatus(cudaMemcpyAsync(frame + at, from, bytes, cudaMemcpyDeviceToHost,
                                        static_cast<cudaStream_t>(stream_)),
                        "read block");
    };
    PKV_RETURN_IF_ERROR(read(pools_.page(layer, page), 0, layout.page_bytes));
    if (header.num_sinks > 0) {
      PKV_RETURN_IF_ERROR(read(pools_.sinks(layer, slot_index), layout.sinks,
                               layout.sink_head_bytes * layout.num_kv_heads));
    }
    if (appended == nullptr) continue;
    PKV_RETURN_IF_ERROR(read(appended + layer * appended_stride, layout.appended,
                             layout.appended_head_bytes * layout.num_kv_heads));
  }
  return WaitAndSeal(std::move(builder), stream_);
}

}  // namespace pkv
