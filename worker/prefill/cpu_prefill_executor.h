#ifndef PKV_WORKER_PREFILL_CPU_PREFILL_EXECUTOR_H_
#define PKV_WORKER_PREFILL_CPU_PREFILL_EXECUTOR_H_

#include "worker/prefill/prefill_executor.h"
#include "worker/serve/model_host.h"

namespace pkv {

// The executor of a ModelHost: any preset; layers are encoded on a thread of the call's own.
// Thread-safe: forward passes take turns.
class CpuPrefillExecutor final : public PrefillExecutor {
 public:
  // `host` outlives it.
  explicit CpuPrefillExecutor(ModelHost* host) : host_(*host) {}

  absl::Status CheckVariant(const CodecParams& params) const override { return absl::OkStatus(); }
  absl::Status Run(KvSequence& sequence, std::span<const int32_t> tokens,
                   const std::function<bool()>& cancelled,
                   const std::function<void(int)>& on_encoded,
                   const DeviceFrames& device_frames) override;

 private:
  ModelHost& host_;
};

}  // namespace pkv

#endif  // PKV_WORKER_PREFILL_CPU_PREFILL_EXECUTOR_H_
