#ifndef PKV_WORKER_PREFILL_LAYER_STAGING_H_
#define PKV_WORKER_PREFILL_LAYER_STAGING_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device/device_buffer.h"
#include "kernels/device/event.h"
#include "kernels/device/pinned_buffer.h"
#include "pkv/kernels/codec_params.h"
#include "pkv/kernels/kv_tensor.h"
#include "pkv/kernels/layer_compressor.h"
#include "worker/sequence/kv_sequence.h"

namespace pkv {

// One layer of a prompt between device and host: what is compressed, on the device, and its copy in
// pinned memory, from which frames are filled.
//
// Thread-compatible.
class LayerStaging {
 public:
  // For prompts of up to max_blocks blocks. `stream`, a cudaStream_t, gets the memory's release.
  static absl::StatusOr<LayerStaging> Make(const KvShape& shape, const CodecParams& params,
                                           int max_blocks, void* stream);

  std::byte* pages() { return pages_.data(); }
  int64_t page_stride() const { return page_stride_; }
  uint16_t* sinks() { return sinks_.As<uint16_t>(); }
  // Empty, or of a codebook's patterns when one is given: uploaded on `stream`, from pinned memory
  // of this object's. REQUIRES: the codebook fits.
  absl::StatusOr<DeviceBank*> PrepareBank(const Codebook* codebook, void* stream);
  DeviceBank& bank() { return bank_; }

  // Enqueues the copies of so many pages, of sinks, bank and window, then what WaitAndFill() waits
  // for.
  absl::Status StartCopy(int num_blocks, const KvTensorView& window, void* stream);
  // Enqueues copies of the same, as frames, to memory on the device: what WaitAndFill() will fill,
  // padding included. Called before StartCopy().
  absl::Status CopyFrames(bool at_start, const KvTensorView& window,
                          const KvSequence::LayerFrames& to, void* stream) const;
  // Waits for the copies and fills the frames. Frames of blocks are those of the pages, in order;
  // `at_start`: the first has the sinks. REQUIRES: a table has room for the bank's patterns.
  absl::Status WaitAndFill(bool at_start, const KvSequence::LayerFrames& frames);

 private:
  explicit LayerStaging(const KvShape& shape) : shape_(shape) {}
  size_t bank_bytes() const { return bank_memory_.size(); }
  void FillTable(std::span<std::byte> frame) const;

  KvShape shape_;
  int64_t page_bytes_ = 0, page_stride_ = 0, sink_bytes_ = 0;
  DeviceBuffer pages_, sinks_, bank_memory_;
  DeviceBank bank_;
  PinnedBuffer host_pages_, host_sinks_, host_bank_, host_window_;
  Event copied_;
};

}  // namespace pkv

#endif  // PKV_WORKER_PREFILL_LAYER_STAGING_H_
