#ifndef PKV_WORKER_PREFILL_PREFILL_EXECUTOR_H_
#define PKV_WORKER_PREFILL_PREFILL_EXECUTOR_H_

#include <cstdint>
#include <functional>
#include <span>

#include "absl/status/status.h"
#include "pkv/kernels/codec_params.h"
#include "worker/sequence/kv_sequence.h"

namespace pkv {

// Where the frames of a layer are to stand in the device's memory as well; without frames: nowhere,
// which it then says of every layer.
using DeviceFrames = std::function<KvSequence::LayerFrames(int layer)>;

// Computes and encodes prompts on some device, for a prefill worker. Thread-safe.
class PrefillExecutor {
 public:
  virtual ~PrefillExecutor() = default;

  // FailedPrecondition: prompts of these parameters are not served here; says which are.
  virtual absl::Status CheckVariant(const CodecParams& params) const = 0;

  // Computes what `sequence` lacks of `tokens` and fills the frames of everything that its
  // StartBlocks made. Calls on_encoded(layer) once a layer's are filled, in order, from one thread,
  // while later layers are computed; that it takes long holds the computation back. `cancelled` may
  // be null; it is asked after each layer. `device_frames`, when not null (REQUIRES: the executor's
  // device is a GPU), names memory of the GPU into which frames are copied on their way; after OK
  // they stand there. It is asked layer by layer, from the first on, not before the prompt has its
  // turn on the device: a prompt that waits takes no memory.
  //   Cancelled, OutOfRange, errors of the sequence's prefix
  //   Internal, without a prefix  the device failed: it computes nothing any more
  virtual absl::Status Run(KvSequence& sequence, std::span<const int32_t> tokens,
                           const std::function<bool()>& cancelled,
                           const std::function<void(int)>& on_encoded,
                           const DeviceFrames& device_frames) = 0;
};

}  // namespace pkv

#endif  // PKV_WORKER_PREFILL_PREFILL_EXECUTOR_H_
