#ifndef PKV_WORKER_ENGINE_CUDA_CUDA_PREFILL_H_
#define PKV_WORKER_ENGINE_CUDA_CUDA_PREFILL_H_

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device/device_buffer.h"
#include "kernels/device/event.h"
#include "kernels/device/sm_partition.h"
#include "kernels/device/stream.h"
#include "pkv/kernels/codec_params.h"
#include "pkv/kernels/kv_tensor.h"
#include "pkv/kernels/layer_compressor.h"
#include "pkv/kernels/prefill_attention.h"
#include "pkv/kernels/query_statistics.h"
#include "worker/engine/cuda/cuda_model.h"
#include "worker/engine/cuda/layer_pass.h"

namespace pkv {

// Where one layer's compressed blocks go, on the device (layer_compressor.h).
struct PrefillTarget {
  std::byte* pages = nullptr;
  int64_t page_stride = 0;
  const int32_t* page_ids = nullptr;  // null: one after another
  uint16_t* sinks = nullptr;          // of variants with sinks, when the prompt starts here
  DeviceBank* bank = nullptr;         // of variants with patterns
  bool mine = true;
};

// One prompt, or what is missing of it.
struct PrefillRequest {
  std::span<const int32_t> tokens;  // the whole prompt that is to be cached
  // Tokens [0, first_token) are cached already, in whole blocks: load_prefix brings them.
  int first_token = 0;
  // The first so many blocks of the prompt are to stand compressed; those behind first_token are
  // made here.
  int num_blocks = 0;
  // Enqueues on `stream` what fills K and V of [0, first_token) in `prefix`: after RoPE, not
  // rotated; the tokens of a block in any order. Unused when first_token is 0.
  std::function<absl::Status(int layer, const MutableKvTensorView& prefix, void* stream)>
      load_prefix;
  // Asked for each layer, in order, before its compression is enqueued; may wait for room.
  std::function<absl::StatusOr<PrefillTarget>(int layer)> target;
  // Called in order when a layer's compression has been enqueued on `stream`, in which what
  // follows may read target and `window`, the tokens behind the blocks. The view holds until the
  // stream has passed what this call enqueued.
  std::function<absl::Status(int layer, const PrefillTarget& target, const KvTensorView& window,
                             void* stream)>
      on_compressed;
  std::function<bool()> cancelled;  // asked before each layer; null: never
};

// Computes the K and V of prompts on a GPU, layer by layer, each compressed on a stream of its own
// while the next one is computed; what its queries say to the encoder is found on a third. Streams
// of a few multiprocessors may do both. Inside a layer tokens are taken in chunks, so that
// activations stay small.
//
// Owns activations and the uncompressed K and V of two layers. Thread-compatible.
class CudaPrefill {
 public:
  struct Options {
    int max_tokens = 0;  // of a prompt; a multiple of 128
    int chunk_tokens = 4096;
    bool compress = true;  // false: K and V are computed and dropped, for comparison
    // Of the model's stream. kHigh: compression takes what its kernels leave when they end.
    Stream::Priority priority = Stream::Priority::kHigh;
    // Even. Multiprocessors that compress a long prompt while the model's products take the others;
    // 0: none. Without effect where so few do not keep up (compression_share.h), they are more
    // than a 32nd of the device, or the driver cannot set them apart. Equal prompts give equal
    // bits, but not those of another number.
    int compression_sms = 0;
  };
  // `model` outlives it.
  //   ResourceExhausted  out of device memory
  static absl::StatusOr<std::unique_ptr<CudaPrefill>> Make(const CudaModel* model,
                                                           const CodecParams& params,
                                                           const Options& options);

  // Returns when all is done.
  //   InvalidArgument  more tokens than max_tokens or the model's context, blocks or a prefix that
  //   they do not fill OutOfRange       K or V of a token is beyond fp16 Cancelled `cancelled` said
  //   so errors of the callbacks
  absl::Status Run(const PrefillRequest& request);

  void* stream() const { return streams_.compute.handle(); }
  // What it is given between calls of Run() comes before the compression of the next prompt.
  void* compress_stream() const { return streams_.compress.handle(); }
  // That are set apart.
  int compression_sms() const { return confined_.has_value() ? confined_->partition.num_sms() : 0; }

 private:
  struct Streams {
    // `queries`: what the model's queries say to the encoder. Small kernels that take their time.
    Stream compute, compress, queries;
  };
  CudaPrefill(const CudaModel* model, const CodecParams& params, const Options& options,
              Streams streams);
  absl::Status Allocate();
  // Sets multiprocessors apart for compression.
  absl::Status Confine();
  absl::Status RunLayers(const PrefillRequest& request);
  absl::Status ComputeLayer(const PrefillRequest& request, int layer);
  absl::Status AttendChunk(int layer, int first, int rows);
  absl::Status SampleChunk(int first, int rows, const float* lse);
  absl::Status CompressLayer(const PrefillRequest& request, int layer);
  // The layer is compressed on the multiprocessors set apart. Nothing is computed beside the last
  // one, and little beside the one before: they are compressed on all.
  bool Confines(int layer) const {
    return confines_prompt_ && layer + 2 < model_.config().num_layers;
  }
  // What the queries say to the layer's encoder.
  absl::Status AskQueries(const PrefillRequest& request, int layer, LayerCompression& compression);
  // K and V of all tokens of the layer, whose buffer is used by every other one.
  MutableKvTensorView kv(int layer, int num_tokens);
  // The encoder asks what the queries were.
  bool wants_statistics() const { return statistics_ != nullptr; }

  const CudaModel& model_;
  const CodecParams params_;
  const Options options_;
  const Streams streams_;  // outlive the device memory
  struct Confined {
    SmPartition partition;
    Stream compress, queries;
  };
  std::optional<Confined> confined_;
  int num_sms_ = 0;               // of the device
  bool confines_prompt_ = false;  // that is computed
  std::unique_ptr<LayerPass> pass_;
  std::unique_ptr<PrefillAttention> attention_;
  std::unique_ptr<QueryStatistics> statistics_;
  std::unique_ptr<LayerCompressor> compressor_;
  DeviceBuffer tokens_, lse_, not_finite_;
  DeviceBuffer importance_;         // [kv_head][token] fp32
  std::array<DeviceBuffer, 2> kv_;  // by layer mod 2
  // By layer mod 2: K and V are complete; whoever reads them is through.
  std::array<Event, 2> ready_, released_;
  // The compress stream has come to the prompt. Of the last chunk: its queries have attended, and
  // been sampled; of the last layer: they are summed up, and what they say is there.
  Event started_, attended_, sampled_, summed_, asked_;
};

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_CUDA_CUDA_PREFILL_H_
