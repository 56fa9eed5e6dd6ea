#include "worker/prefill/cpu_prefill_executor.h"

#include <thread>

#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "worker/prefill/layer_queue.h"

namespace pkv {

absl::Status CpuPrefillExecutor::Run(KvSequence& sequence, std::span<const int32_t> tokens,
                                     const std::function<bool()>& cancelled,
                                     const std::function<void(int)>& on_encoded,
                                     const DeviceFrames& device_frames) {
  PKV_CHECK(device_frames == nullptr, "frames on a device, of a model on the CPU");
  // Layers are encoded on a thread of their own, in order, while the model goes on. It alone
  // touches what stands here until it is joined.
  LayerQueue layers;
  absl::Status encode_status;
  std::thread encoder([&] {
    for (int layer = layers.Pop(); layer >= 0; layer = layers.Pop()) {
      encode_status = sequence.EncodeLayer(layer);
      if (!encode_status.ok()) return;
      on_encoded(layer);
    }
  });
  const absl::Status computed =
      ComputePrefill(host_, sequence, tokens, [&](int layer) -> absl::Status {
        if (cancelled && cancelled()) return absl::CancelledError("the caller went away");
        layers.Push(layer);
        return absl::OkStatus();
      });
  layers.Close();
  encoder.join();
  PKV_RETURN_IF_ERROR(computed);
  return encode_status;
}

}  // namespace pkv
