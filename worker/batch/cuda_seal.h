#ifndef PKV_WORKER_BATCH_CUDA_SEAL_H_
#define PKV_WORKER_BATCH_CUDA_SEAL_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "pkv/block/object_builder.h"
#include "pkv/kernels/codec_params.h"
#include "worker/batch/cuda_pools.h"
#include "worker/batch/cuda_slot.h"

namespace pkv {

// Reads what a slot made back from the device and seals it: for put-back, and because a table's id
// is that of its bytes. Calls enqueue on `stream`, a cudaStream_t, and wait for it.
//
// Thread-compatible.
class CudaSeal {
 public:
  // `pools` outlives it.
  CudaSeal(CudaPools* pools, const CodecParams& params, const Digest& profile, void* stream)
      : pools_(*pools), params_(params), profile_(profile), stream_(stream) {}

  // The table of a slot's bank, as mined.
  absl::StatusOr<std::unique_ptr<ObjectBuilder>> Table(int slot_index, const CudaSlot& slot) const;
  // A block. `appended`: what it appends, layer after layer, appended_stride elements apart, on the
  // device; null when it appends nothing.
  absl::StatusOr<std::unique_ptr<ObjectBuilder>> Block(const ObjectHeader& header, int slot_index,
                                                       int page, const uint16_t* appended,
                                                       int64_t appended_stride) const;

 private:
  CudaPools& pools_;
  const CodecParams params_;
  const Digest profile_;
  void* const stream_;
};

}  // namespace pkv

#endif  // PKV_WORKER_BATCH_CUDA_SEAL_H_
