#include "worker/prefill/cuda_prefill_executor.h"

#include <algorithm>
#include <array>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "pkv/kernels/layer_decoder.h"
#include "proto/base/status_macros.h"
#include "proto/base/sync.h"
#include "proto/block/payload_layout.h"
#include "worker/batch/upload_ring.h"
#include "worker/engine/compute_turn.h"
#include "worker/engine/cuda/cuda_prefill.h"
#include "worker/prefill/layer_queue.h"
#include "worker/prefill/layer_staging.h"

namespace pkv {
namespace {

constexpr size_t kUploadHalfBytes = size_t{32} << 20;

// Layers that may be on their way at once: one whose prefix is decoded and that is computed, one
// that is compressed, one that is copied into its frames.
constexpr int kNumStaged = 3;

// Layers that are staged and not yet in their frames. Thread-safe.
class StagingRoom {
 public:
  // Waits until layer - kNumStaged has left.
  void Enter(int layer) {
    MutexLock lock(&mu_);
    while (layer - num_left_ >= kNumStaged) changed_.Wait(&mu_);
  }
  void Leave() {
    {
      MutexLock lock(&mu_);
      ++num_left_;
    }
    changed_.SignalAll();
  }

 private:
  Mutex mu_;
  CondVar changed_;
  int num_left_ ABSL_GUARDED_BY(mu_) = 0;
};

absl::Status CheckRoom(const DeviceBank& bank, const ObjectHeader& table) {
  if (bank.num_k == table.num_patterns_k && bank.num_v == table.num_patterns_v) {
    return absl::OkStatus();
  }
  return absl::InternalError(absl::StrCat(bank.num_k, "+", bank.num_v,
                                          " patterns were mined, the table has room for ",
                                          table.num_patterns_k, "+", table.num_patterns_v));
}

class CudaPrefillExecutor final : public PrefillExecutor {
 public:
  explicit CudaPrefillExecutor(const CodecParams& params) : params_(params) {}
  // Before others have the executor.
  absl::Status Init(const CudaModel* model,
                    const CudaPrefillOptions& options) ABSL_NO_THREAD_SAFETY_ANALYSIS;

  absl::Status CheckVariant(const CodecParams& params) const override {
    const Variant wanted = params.variant(), served = params_.variant();
    if (wanted == served) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat(
        "preset '", wanted.name, "' is not served here: this worker makes '", served.name, "'"));
  }
  absl::Status Run(KvSequence& sequence, std::span<const int32_t> tokens,
                   const std::function<bool()>& cancelled,
                   const std::function<void(int)>& on_encoded,
                   const DeviceFrames& device_frames) override;

 private:
  // Brings the blocks of a cached prefix back as K and V.
  absl::Status LoadPrefix(KvSequence& sequence, int layer, const MutableKvTensorView& prefix,
                          void* stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(turn_);
  LayerStaging& staging(int layer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(turn_) {
    return *staging_[layer % kNumStaged];
  }

  const CodecParams params_;
  ComputeTurn turn_;
  std::unique_ptr<CudaPrefill> prefill_ ABSL_GUARDED_BY(turn_);
  std::unique_ptr<LayerDecoder> decoder_ ABSL_GUARDED_BY(turn_);
  std::array<std::optional<LayerStaging>, kNumStaged> staging_ ABSL_GUARDED_BY(turn_);
  std::optional<UploadRing> ring_ ABSL_GUARDED_BY(turn_);
  DeviceBuffer prefix_pages_ ABSL_GUARDED_BY(turn_), prefix_sinks_ ABSL_GUARDED_BY(turn_);
};

absl::Status CudaPrefillExecutor::Init(const CudaModel* model, const CudaPrefillOptions& options) {
  const KvShape shape = model->config().kv_shape();
  CudaPrefill::Options pass;
  const int most =
      options.max_tokens > 0 ? options.max_tokens : model->config().max_position_embeddings;
  pass.max_tokens = (most + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
  pass.chunk_tokens = options.chunk_tokens;
  pass.compression_sms = options.compression_sms;
  PKV_ASSIGN_OR_RETURN(prefill_, CudaPrefill::Make(model, params_, pass));
  void* stream = prefill_->stream();
  PKV_ASSIGN_OR_RETURN(decoder_,
                       LayerDecoder::Make(shape, params_, {Device::kCuda, nullptr, stream}));
  const int max_blocks = pass.max_tokens / kBlockTokens;
  for (std::optional<LayerStaging>& staging : staging_) {
    PKV_ASSIGN_OR_RETURN(LayerStaging made, LayerStaging::Make(shape, params_, max_blocks, stream));
    staging.emplace(std::move(made));
  }
  PKV_ASSIGN_OR_RETURN(UploadRing ring, UploadRing::Make(kUploadHalfBytes, options.pool, stream));
  ring_.emplace(std::move(ring));
  PKV_ASSIGN_OR_RETURN(prefix_pages_,
                       DeviceBuffer::Make(max_blocks * staging_[0]->page_stride(), stream));
  PKV_ASSIGN_OR_RETURN(prefix_sinks_,
                       DeviceBuffer::Make(size_t(params_.num_sinks) * shape.num_kv_heads *
                                              shape.head_dim * 2 * sizeof(uint16_t),
                                          stream));
  return absl::OkStatus();
}

absl::Status CudaPrefillExecutor::LoadPrefix(KvSequence& sequence, int layer,
                                             const MutableKvTensorView& prefix, void* stream) {
  PKV_RETURN_IF_ERROR(sequence.WaitForLayer(layer));
  const std::vector<BlockPage> pages = sequence.pages(layer);
  const int64_t stride = staging(layer).page_stride();
  for (size_t i = 0; i < pages.size(); ++i) {
    const PayloadLayout layout = PayloadLayout::Of(*pages[i].header);
    PKV_RETURN_IF_ERROR(
        ring_->Copy(pages[i].frame.first(layout.page_bytes), prefix_pages_.data() + i * stride));
    if (layout.num_sinks > 0) {
      PKV_RETURN_IF_ERROR(ring_->Copy(
          pages[i].frame.subspan(layout.sinks, layout.sink_head_bytes * layout.num_kv_heads),
          prefix_sinks_.data()));
    }
  }
  PKV_RETURN_IF_ERROR(ring_->Flush());
  PKV_RETURN_IF_ERROR(sequence.CheckHeld());
  LayerDecode decode;
  decode.pages = prefix_pages_.data();
  decode.page_stride = stride;
  decode.num_blocks = static_cast<int>(pages.size());
  decode.sinks = prefix_sinks_.As<uint16_t>();
  // The layer that the staging was last used for has left it.
  PKV_ASSIGN_OR_RETURN(decode.bank, staging(layer).PrepareBank(pages.front().codebook, stream));
  decode.out = prefix;
  return decoder_->Decode(decode, {Device::kCuda, nullptr, stream});
}

absl::Status CudaPrefillExecutor::Run(KvSequence& sequence, std::span<const int32_t> tokens,
                                      const std::function<bool()>& cancelled,
                                      const std::function<void(int)>& on_encoded,
                                      const DeviceFrames& device_frames) {
  if (!turn_.TakeUnless(cancelled)) return absl::CancelledError("the caller went away");
  const HeldTurn held(&turn_);
  const int first_token = static_cast<int>(sequence.num_tokens());
  const int num_made = static_cast<int>(sequence.layer_frames(0).blocks.size());
  const bool mines = !sequence.layer_frames(0).table.empty();
  StagingRoom room;
  LayerQueue layers;
  absl::Status fill_status;
  std::array<LayerStaging*, kNumStaged> staged;
  for (int i = 0; i < kNumStaged; ++i) staged[i] = &*staging_[i];
  std::thread filler([&] {
    for (int layer = layers.Pop(); layer >= 0; layer = layers.Pop()) {
      if (fill_status.ok()) {
        fill_status =
            staged[layer % kNumStaged]->WaitAndFill(first_token == 0, sequence.layer_frames(layer));
        if (fill_status.ok()) on_encoded(layer);
      }
      room.Leave();
    }
  });
  PrefillRequest request;
  request.tokens = tokens;
  request.first_token = first_token;
  request.num_blocks = first_token / kBlockTokens + num_made;
  request.cancelled = cancelled;
  request.load_prefix = [&](int layer, const MutableKvTensorView& prefix, void* stream)
                            ABSL_NO_THREAD_SAFETY_ANALYSIS {
                              room.Enter(layer);
                              return LoadPrefix(sequence, layer, prefix, stream);
                            };
  request.target = [&](int layer) -> absl::StatusOr<PrefillTarget> {
    room.Enter(layer);
    LayerStaging& staging = *staged[layer % kNumStaged];
    PrefillTarget target;
    target.pages = staging.pages();
    target.page_stride = staging.page_stride();
    target.sinks = staging.sinks();
    target.mine = mines;
    target.bank = &staging.bank();  // load_prefix has filled it
    if (first_token == 0) {
      PKV_ASSIGN_OR_RETURN(target.bank, staging.PrepareBank(nullptr, nullptr));
    }
    return target;
  };
  const KvSequence::MadeObjects made = sequence.made_objects();
  request.on_compressed = [&](int layer, const PrefillTarget& target, const KvTensorView& window,
                              void* stream) -> absl::Status {
    if (mines) PKV_RETURN_IF_ERROR(CheckRoom(*target.bank, made.table->header()));
    LayerStaging& staging = *staged[layer % kNumStaged];
    // Before the copies that the host waits for: once they are here, so are these. Of a prompt that
    // failed nothing is under way any more when the next one starts.
    if (device_frames) {
      PKV_RETURN_IF_ERROR(
          staging.CopyFrames(first_token == 0, window, device_frames(layer), stream));
    }
    PKV_RETURN_IF_ERROR(staging.StartCopy(num_made, window, stream));
    layers.Push(layer);
    return absl::OkStatus();
  };
  const absl::Status computed = prefill_->Run(request);
  layers.Close();
  filler.join();
  PKV_RETURN_IF_ERROR(computed);
  return fill_status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<PrefillExecutor>> MakeCudaPrefillExecutor(
    const CudaModel* model, const CudaPrefillOptions& options) {
  const CodecParams& params = options.params;
  PKV_RETURN_IF_ERROR(params.Validate(model->config().kv_shape()));
  // Patterns are mined from whole blocks alone; one block must do.
  const int most = std::max(params.num_patterns_k, params.num_patterns_v);
  if (most > kBlockTokens - params.num_sinks || options.max_tokens < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("preset '", params.name, "' has ", most, " patterns, a block has ",
                     kBlockTokens - params.num_sinks, " tokens to mine; or max_tokens ",
                     options.max_tokens, " is negative"));
  }
  auto executor = std::make_unique<CudaPrefillExecutor>(options.params);
  PKV_RETURN_IF_ERROR(executor->Init(model, options));
  return executor;
}

}  // namespace pkv
