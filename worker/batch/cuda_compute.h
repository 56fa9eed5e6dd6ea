#ifndef PKV_WORKER_BATCH_CUDA_COMPUTE_H_
#define PKV_WORKER_BATCH_CUDA_COMPUTE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device/device_buffer.h"
#include "pkv/kernels/codec_params.h"
#include "worker/batch/cuda_pools.h"
#include "worker/batch/cuda_seal.h"
#include "worker/batch/cuda_slot.h"
#include "worker/engine/cuda/cuda_prefill.h"

namespace pkv {

// Computes prompts straight into the pools, for a decode worker whose cache did not deliver.
// Thread-compatible.
class CudaCompute {
 public:
  // For prompts of up to max_tokens, which `prefill` can do. `pools` outlives it.
  static absl::StatusOr<std::unique_ptr<CudaCompute>> Make(std::unique_ptr<CudaPrefill> prefill,
                                                           CudaPools* pools,
                                                           const CodecParams& params,
                                                           const Digest& profile, int max_tokens);

  // As BatchEngine::Compute(), into an empty slot.
  absl::Status Run(int slot_index, std::span<const int32_t> tokens, std::span<const int32_t> pages,
                   const std::function<bool()>& cancelled,
                   std::vector<std::unique_ptr<ObjectBuilder>>* sealed, CudaSlot& slot);

 private:
  CudaCompute(CudaPools* pools, const CodecParams& params, const Digest& profile,
              std::unique_ptr<CudaPrefill> prefill);
  absl::Status CopyWindow(const KvTensorView& window, int slot_index, int layer, void* stream);
  // Headers of the blocks, the table's first when there is one.
  absl::Status SealAll(int slot_index, std::span<const int32_t> tokens,
                       std::vector<std::unique_ptr<ObjectBuilder>>* sealed, CudaSlot& slot);

  CudaPools& pools_;
  const CodecParams params_;
  const Digest profile_;
  const std::unique_ptr<CudaPrefill> prefill_;
  const CudaSeal seal_;
  DeviceBuffer page_ids_;
};

}  // namespace pkv

#endif  // PKV_WORKER_BATCH_CUDA_COMPUTE_H_
