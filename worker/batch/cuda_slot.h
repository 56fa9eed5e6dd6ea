#ifndef PKV_WORKER_BATCH_CUDA_SLOT_H_
#define PKV_WORKER_BATCH_CUDA_SLOT_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "pkv/block/kv_shape.h"
#include "worker/batch/batch_engine.h"
#include "worker/batch/cuda_pools.h"
#include "worker/batch/upload_ring.h"

namespace pkv {

// What a CUDA engine keeps of one sequence on the host.
struct CudaSlot {
  EnginePrefix prefix;  // pages grow as blocks are flushed; its stream goes when all of it is here
  std::vector<ObjectHeader> headers;  // of the blocks
  Digest table;                       // of the bank; zero without one
  int num_patterns_k = 0, num_patterns_v = 0;
  int num_window_tokens = 0;
  uint64_t received_bytes = 0;  // by the stream that went

  int num_blocks() const { return static_cast<int>(prefix.pages.size()); }
  int64_t num_tokens() const { return int64_t{num_blocks()} * kBlockTokens + num_window_tokens; }
};

// Checks that what the stream's manifest names is an unbroken chain of this model and variant, and
// takes it over into an empty slot. Frames that come to device memory begin to come, those of
// blocks to their pages.
//   FailedPrecondition  it is not; or its blocks refer to more than one table, or to more patterns
//                       than a bank holds
//   InvalidArgument     a window that is too large
absl::Status AttachPrefix(EnginePrefix prefix, const CodecParams& params, const Digest& profile,
                          CudaPools& pools, CudaSlot& slot);

// Waits for one layer of the slot's stream and copies its tables, blocks, sinks and window to where
// attention reads them.
absl::Status LoadLayer(const CudaSlot& slot, int slot_index, int layer, CudaPools& pools,
                       UploadRing& ring);

}  // namespace pkv

#endif  // PKV_WORKER_BATCH_CUDA_SLOT_H_
