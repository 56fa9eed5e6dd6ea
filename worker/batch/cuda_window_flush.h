#ifndef PKV_WORKER_BATCH_CUDA_WINDOW_FLUSH_H_
#define PKV_WORKER_BATCH_CUDA_WINDOW_FLUSH_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device/device_buffer.h"
#include "kernels/device/pinned_buffer.h"
#include "pkv/kernels/codec_params.h"
#include "pkv/kernels/layer_compressor.h"
#include "worker/batch/batch_engine.h"
#include "worker/batch/cuda_pools.h"
#include "worker/batch/cuda_seal.h"
#include "worker/batch/cuda_slot.h"

namespace pkv {

// Turns the oldest 128 window tokens of slots into blocks, on the device, and seals what is wanted
// back on the host. Rounding does not know of the queries here: no key feedback (key_feedback.h),
// and of a block's tokens the newest have the fine codes.
//
// Thread-compatible.
class CudaWindowFlush {
 public:
  // Work is given to `stream`, a cudaStream_t: that of the steps that fill the windows. `pools`
  // outlives it.
  static absl::StatusOr<std::unique_ptr<CudaWindowFlush>> Make(CudaPools* pools,
                                                               const CodecParams& params,
                                                               const Digest& profile, int max_slots,
                                                               void* stream);

  // At most one flush a slot. Returns when all is done.
  absl::Status Run(std::span<const FlushInput> flushes, std::vector<CudaSlot>& slots);

 private:
  CudaWindowFlush(CudaPools* pools, const CodecParams& params, const Digest& profile, void* stream)
      : pools_(*pools),
        params_(params),
        profile_(profile),
        stream_(stream),
        seal_(pools, params, profile, stream) {}

  absl::Status FlushOne(const FlushInput& flush, CudaSlot& slot);
  // The header of the block that `flush` makes.
  absl::StatusOr<ObjectHeader> HeaderFor(const FlushInput& flush, const CudaSlot& slot) const;
  absl::Status Compress(const FlushInput& flush, const CudaSlot& slot, const ObjectHeader& header,
                        DeviceBank& bank, int layer);
  absl::Status Seal(const FlushInput& flush, ObjectHeader& header, CudaSlot& slot);
  uint16_t* appended(int layer) { return appended_.As<uint16_t>() + layer * appended_stride_; }
  absl::Status DropFront(std::span<const FlushInput> flushes, std::vector<CudaSlot>& slots);

  CudaPools& pools_;
  const CodecParams params_;
  const Digest profile_;
  void* const stream_;
  const CudaSeal seal_;
  std::unique_ptr<LayerCompressor> compressor_;
  std::unique_ptr<LayerCompressor> full_bank_compressor_;  // appends nothing; null without patterns
  DeviceBuffer appended_;                                  // of one block, [layer][stride] fp16
  int64_t appended_stride_ = 0;
  PinnedBuffer host_shift_;
  DeviceBuffer shift_;  // slots, then their window tokens
};

}  // namespace pkv

#endif  // PKV_WORKER_BATCH_CUDA_WINDOW_FLUSH_H_
