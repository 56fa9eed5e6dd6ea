#include <algorithm>
#include <array>

#include "kernels/codec/layer_compressor_backends.h"
#include "kernels/codec/layer_encode.h"
#include "kernels/codec/layer_prepare.h"
#include "kernels/device/cuda_status.h"
#include "kernels/device/device_buffer.h"
#include "kernels/device/event.h"
#include "kernels/device/stream.h"
#include "kernels/pattern/assign_kernels.h"
#include "kernels/pattern/kmeans_kernels.h"
#include "pkv/block/object_header.h"
#include "pkv/kernels/pattern_miner.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// Sizes of the scratch memory, in bytes; every part starts at a multiple of 256.
struct ScratchSizes {
  size_t rotated = 0;  // K, and V the same
  size_t ids = 0;      // of K, and of V the same
  size_t slots = 0;
  size_t columns = 0;  // of K patterns, for its search
  size_t mining = 0;
};

size_t RoundUp(size_t bytes) { return (bytes + 255) / 256 * 256; }

KMeansKernelArgs MiningArgs(const KvShape& shape, const CodecParams& params) {
  KMeansKernelArgs args;
  args.num_kv_heads = shape.num_kv_heads;
  args.head_dim = shape.head_dim;
  args.num_patterns_k = params.num_patterns_k;
  args.num_patterns_v = params.num_patterns_v;
  args.iterations = params.kmeans_iterations;
  args.tolerance = params.kmeans_tolerance;
  return args;
}

ScratchSizes SizesFor(const KvShape& shape, const CodecParams& params, int max_tokens) {
  const size_t rows = static_cast<size_t>(shape.num_kv_heads) * max_tokens;
  ScratchSizes sizes;
  if (params.encoding.rotated) sizes.rotated = RoundUp(rows * shape.head_dim * sizeof(uint16_t));
  if (params.encoding.has_patterns) {
    sizes.ids = RoundUp(rows);
    KMeansKernelArgs mining = MiningArgs(shape, params);
    mining.num_tokens = max_tokens;
    sizes.mining = RoundUp(static_cast<size_t>(KMeansWorkspaceBytes(mining)));
  }
  if (params.encoding.k_fine_tokens > 0) sizes.slots = RoundUp(rows);
  // The direct encoder needs none, but any variant may be given feedback.
  if (params.encoding.has_patterns) {
    sizes.columns = RoundUp(KeySearchBytes(kMaxPatterns, shape.num_kv_heads, shape.head_dim));
  }
  return sizes;
}

// What one call enqueues: the layer or the block, as it goes from step to step.
struct Job {
  KvTensorView given;
  KvTensorView kv;    // rotated, where the encoding is
  int num_sinks = 0;  // of the first block
  int num_blocks = 0;
  DeviceBank* bank = nullptr;
  DevicePatternIds ids;
  DeviceKeyFeedback feedback;
  const float* importance = nullptr;
  void* queries_asked = nullptr;
  LayerEncodeArgs encode;
};

// A second stream, for what the caller's need not wait for at once.
class SideStream {
 public:
  static absl::StatusOr<SideStream> Make() {
    PKV_ASSIGN_OR_RETURN(Stream stream, Stream::Make());
    PKV_ASSIGN_OR_RETURN(Event forked, Event::Make());
    PKV_ASSIGN_OR_RETURN(Event joined, Event::Make());
    return SideStream(std::move(stream), std::move(forked), std::move(joined));
  }

  cudaStream_t handle() const { return static_cast<cudaStream_t>(stream_.handle()); }
  // What it is given from now on follows what `stream` has been given.
  absl::Status Fork(cudaStream_t stream) const {
    PKV_RETURN_IF_ERROR(forked_.Record(stream));
    return forked_.MakeWait(handle());
  }
  // What `stream` is given from now on follows what this one has been given.
  absl::Status Join(cudaStream_t stream) const {
    PKV_RETURN_IF_ERROR(joined_.Record(handle()));
    return joined_.MakeWait(stream);
  }

 private:
  SideStream(Stream stream, Event forked, Event joined)
      : stream_(std::move(stream)), forked_(std::move(forked)), joined_(std::move(joined)) {}
  Stream stream_;
  Event forked_, joined_;
};

class LayerCompressorCuda final : public LayerCompressor {
 public:
  LayerCompressorCuda(const KvShape& shape, const CodecParams& params, int max_tokens,
                      DeviceBuffer scratch, SideStream side)
      : shape_(shape),
        params_(params),
        max_tokens_(max_tokens),
        sizes_(SizesFor(shape, params, max_tokens)),
        scratch_(std::move(scratch)),
        side_(std::move(side)) {}

  static size_t ScratchBytes(const KvShape& shape, const CodecParams& params, int max_tokens) {
    const ScratchSizes sizes = SizesFor(shape, params, max_tokens);
    return kFlagBytes + 2 * sizes.rotated + 2 * sizes.ids + sizes.slots + sizes.columns +
           sizes.mining;
  }

  absl::Status Compress(const LayerCompression& layer, const ComputeContext& ctx) override {
    PKV_RETURN_IF_ERROR(CheckLayer(shape_, params_, max_tokens_, layer));
    const auto stream = static_cast<cudaStream_t>(ctx.stream);
    Job job;
    job.given = job.kv = layer.kv;
    job.num_sinks = layer.at_start ? params_.num_sinks : 0;
    job.num_blocks = layer.kv.num_tokens / kBlockTokens;
    job.bank = layer.bank;
    job.ids = layer.ids;
    job.feedback = layer.feedback;
    job.importance = layer.importance;
    job.queries_asked = layer.queries_asked;
    job.encode = EncodeArgsFor(shape_, params_);
    job.encode.pages = layer.pages;
    job.encode.page_stride = layer.page_stride;
    job.encode.page_ids = layer.page_ids;
    job.encode.sinks = layer.sinks;
    if (layer.mine && params_.encoding.has_patterns) {
      // Rows are mined as given: rotation keeps distances, and so runs beside mining. Mining comes
      // first: it needs whole multiprocessors, of which rotation would leave none.
      const cudaStream_t side = side_.handle();
      PKV_RETURN_IF_ERROR(side_.Fork(stream));
      absl::Status status = Mine(job, layer.is_confined ? side : stream);
      if (status.ok()) status = Prepare(job, layer.is_confined ? stream : side);
      // Also behind a failure: what was enqueued reads what the caller may free.
      status.Update(side_.Join(stream));
      PKV_RETURN_IF_ERROR(status);
    } else {
      PKV_RETURN_IF_ERROR(Prepare(job, stream));
    }
    return Encode(job, Phase::kPrefill, stream, layer.is_confined ? stream : side_.handle());
  }

  absl::Status Flush(std::span<WindowFlush> flushes, const ComputeContext& ctx) override {
    for (const WindowFlush& flush : flushes) {
      PKV_RETURN_IF_ERROR(CheckFlush(shape_, params_, flush));
    }
    for (WindowFlush& flush : flushes) {
      PKV_RETURN_IF_ERROR(FlushOne(flush, static_cast<cudaStream_t>(ctx.stream)));
    }
    return absl::OkStatus();
  }

  absl::Status CheckFinite(const ComputeContext& ctx) override {
    const auto stream = static_cast<cudaStream_t>(ctx.stream);
    uint32_t flag = 0;
    PKV_RETURN_IF_ERROR(CudaStatus(
        cudaMemcpyAsync(&flag, non_finite(), sizeof(flag), cudaMemcpyDeviceToHost, stream),
        "read finite flag"));
    PKV_RETURN_IF_ERROR(
        CudaStatus(cudaMemsetAsync(non_finite(), 0, sizeof(flag), stream), "clear finite flag"));
    PKV_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream), "compress layers"));
    if (flag == 0) return absl::OkStatus();
    return absl::InvalidArgumentError("K or V holds a NaN or infinity");
  }

  static constexpr size_t kFlagBytes = 256;

 private:
  uint32_t* non_finite() { return scratch_.As<uint32_t>(); }
  std::byte* part(size_t offset) { return scratch_.data() + kFlagBytes + offset; }
  uint16_t* rotated(bool is_v) {
    return reinterpret_cast<uint16_t*>(part(is_v ? sizes_.rotated : 0));
  }
  uint8_t* ids(bool is_v) {
    return reinterpret_cast<uint8_t*>(part(2 * sizes_.rotated + (is_v ? sizes_.ids : 0)));
  }
  uint8_t* slots() { return reinterpret_cast<uint8_t*>(part(2 * sizes_.rotated + 2 * sizes_.ids)); }
  std::byte* columns() { return part(2 * sizes_.rotated + 2 * sizes_.ids + sizes_.slots); }
  std::byte* mining() { return columns() + sizes_.columns; }
  // Elements from K of a bank to its V.
  int64_t BankTensor(const DeviceBank& bank) const {
    return int64_t{shape_.num_kv_heads} * bank.capacity * shape_.head_dim;
  }

  // Rotates, or at least looks for what is not finite: the direct encoder does so itself in blocks.
  absl::Status Prepare(Job& job, cudaStream_t stream) {
    if (params_.encoding.rotated) {
      const MutableKvTensorView out = {rotated(false),      rotated(true),
                                       job.kv.num_kv_heads, job.kv.num_tokens,
                                       job.kv.head_dim,     int64_t{max_tokens_} * job.kv.head_dim};
      PKV_RETURN_IF_ERROR(
          CudaStatus(LaunchRotateRows(job.kv, out, non_finite(), stream), "launch rotation"));
      job.kv = out;
    } else {
      const int checked = LooksForNonFinite(job) ? job.num_blocks * kBlockTokens : 0;
      const KvTensorView rest = job.kv.Tokens(checked, job.kv.num_tokens - checked);
      PKV_RETURN_IF_ERROR(
          CudaStatus(LaunchFiniteFlag(rest, non_finite(), stream), "launch finite check"));
    }
    return absl::OkStatus();
  }

  // Which token stands in which slot.
  absl::Status Arrange(Job& job, cudaStream_t stream) {
    if (job.importance == nullptr || params_.encoding.k_fine_tokens == 0) return absl::OkStatus();
    SlotKernelArgs args;
    args.importance = job.importance;
    args.head_stride = job.kv.num_tokens;
    args.num_blocks = job.num_blocks;
    args.num_kv_heads = shape_.num_kv_heads;
    args.num_sinks = job.num_sinks;
    args.num_fine = params_.encoding.k_fine_tokens;
    args.slots = slots();
    job.encode.slots = slots();
    return CudaStatus(LaunchArrangeSlots(args, stream), "launch slots");
  }

  bool LooksForNonFinite(const Job& job) const {
    return job.encode.layout.encoding.is_fp16() ||
           (job.feedback.order == nullptr && params_.gate_v != Gate::kExactMse &&
            DirectEncodeCovers(job.encode));
  }

  absl::Status Mine(Job& job, cudaStream_t stream) {
    KMeansKernelArgs args = MiningArgs(shape_, params_);
    const int first = std::min(job.num_sinks, job.given.num_tokens);
    const KvTensorView kv = job.given.Tokens(first, job.given.num_tokens - first);
    args.k = kv.k;
    args.v = kv.v;
    args.num_tokens = kv.num_tokens;
    args.head_stride = kv.head_stride;
    args.bank = job.bank->patterns;
    args.bank_capacity = job.bank->capacity;
    args.is_bank_rotated = params_.encoding.rotated;
    args.workspace = mining();
    job.bank->num_k = std::min(args.num_patterns_k, args.num_tokens);
    job.bank->num_v = std::min(args.num_patterns_v, args.num_tokens);
    return CudaStatus(LaunchMinePatterns(args, stream), "launch mining");
  }

  absl::Status Assign(Job& job, Phase phase, cudaStream_t stream) {
    const auto is_min_max = [&](AssignMetric prefill, AssignMetric decode) {
      return (phase == Phase::kPrefill ? prefill : decode) == AssignMetric::kMinMax;
    };
    AssignKernelArgs args;
    args.min_max_k = is_min_max(params_.assign_k_prefill, params_.assign_k_decode);
    args.min_max_v = is_min_max(params_.assign_v_prefill, params_.assign_v_decode);
    // A prompt's rows as given, like those that its patterns were mined from.
    args.is_bank_rotated =
        params_.encoding.rotated && phase == Phase::kPrefill && !args.min_max_k && !args.min_max_v;
    const KvTensorView& kv = args.is_bank_rotated ? job.given : job.kv;
    args.k = kv.k;
    args.v = kv.v;
    args.num_kv_heads = shape_.num_kv_heads;
    args.num_tokens = job.num_blocks * kBlockTokens;
    args.head_dim = shape_.head_dim;
    args.head_stride = kv.head_stride;
    args.first_token = job.num_sinks;
    args.bank = job.bank->patterns;
    args.bank_capacity = job.bank->capacity;
    args.num_patterns_k = job.bank->num_k;
    args.num_patterns_v = job.bank->num_v;
    args.k_ids = ids(false);
    args.v_ids = ids(true);
    args.ids_stride = max_tokens_;
    job.ids = {ids(false), ids(true), max_tokens_};
    job.encode.gate_v = params_.gate_v;
    job.encode.gate_threshold =
        static_cast<float>(GateThreshold(shape_.head_dim, params_.gate_alpha));
    return CudaStatus(LaunchAssignPatterns(args, stream), "launch assignment");
  }

  // `stream_of_v`: this object's own, or `stream`.
  absl::Status Encode(Job& job, Phase phase, cudaStream_t stream, cudaStream_t stream_of_v) {
    LayerEncodeArgs& args = job.encode;
    if (params_.encoding.has_patterns && job.ids.k == nullptr && job.num_blocks > 0) {
      PKV_RETURN_IF_ERROR(Assign(job, phase, stream));
    }
    if (job.queries_asked != nullptr) {
      PKV_RETURN_IF_ERROR(CudaStatus(
          cudaStreamWaitEvent(stream, static_cast<cudaEvent_t>(job.queries_asked)), "wait"));
    }
    if (job.num_blocks == 0) return absl::OkStatus();
    PKV_RETURN_IF_ERROR(Arrange(job, stream));
    if (params_.encoding.has_patterns) {
      args.k_patterns = job.bank->patterns;
      args.v_patterns = job.bank->patterns + BankTensor(*job.bank);
      args.k_bank_head_stride = args.v_bank_head_stride =
          int64_t{job.bank->capacity} * shape_.head_dim;
      args.num_k_patterns = job.bank->num_k;
      args.k_pattern_columns = reinterpret_cast<float*>(columns());
      args.k_ids = job.ids.k;
      args.v_ids = job.ids.v;
      args.ids_block_stride = kBlockTokens;
      args.ids_head_stride = job.ids.head_stride;
    }
    args.num_blocks = job.num_blocks;
    args.num_sinks = job.num_sinks;
    args.k = job.kv.k;
    args.v = job.kv.v;
    args.block_stride = int64_t{kBlockTokens} * shape_.head_dim;
    args.head_stride = job.kv.head_stride;
    if (!args.layout.encoding.is_fp16()) {
      args.k_order = job.feedback.order;
      args.k_weights = job.feedback.weights;
      args.k_weight_scales = job.feedback.scales;
    }
    args.has_non_finite = non_finite();
    if (stream_of_v == stream || DirectEncodeCovers(args)) {
      return CudaStatus(LaunchLayerEncode(args, stream, stream), "launch encoder");
    }
    // V fills what the last blocks of K leave.
    PKV_RETURN_IF_ERROR(side_.Fork(stream));
    const absl::Status status =
        CudaStatus(LaunchLayerEncode(args, stream, stream_of_v), "launch encoder");
    PKV_RETURN_IF_ERROR(side_.Join(stream));  // also behind a failure
    return status;
  }

  absl::Status FlushOne(WindowFlush& flush, cudaStream_t stream) {
    Job job;
    job.given = job.kv = flush.kv;
    job.num_blocks = 1;
    job.bank = flush.bank;
    job.ids = flush.ids;
    job.feedback = flush.feedback;
    job.importance = flush.importance;
    job.encode = EncodeArgsFor(shape_, params_);
    job.encode.pages = flush.page;
    PKV_RETURN_IF_ERROR(Prepare(job, stream));
    flush.append_flags = 0;
    if (params_.encoding.has_patterns) PKV_RETURN_IF_ERROR(Append(job, flush, stream));
    return Encode(job, Phase::kDecode, stream, stream);
  }

  absl::Status Append(const Job& job, WindowFlush& flush, cudaStream_t stream) {
    DeviceBank& bank = *flush.bank;
    CentreKernelArgs args;
    args.k = job.kv.k;
    args.v = job.kv.v;
    args.num_kv_heads = shape_.num_kv_heads;
    args.num_tokens = kBlockTokens;
    args.head_dim = shape_.head_dim;
    args.head_stride = job.kv.head_stride;
    args.bank = bank.patterns;
    args.bank_capacity = bank.capacity;
    if (params_.append_k && bank.num_k < kMaxPatterns) args.k_id = bank.num_k++;
    if (params_.append_v && bank.num_v < kMaxPatterns) args.v_id = bank.num_v++;
    if (args.k_id >= 0) flush.append_flags |= kFlagAppendsK;
    if (args.v_id >= 0) flush.append_flags |= kFlagAppendsV;
    if (flush.append_flags == 0) return absl::OkStatus();
    PKV_RETURN_IF_ERROR(CudaStatus(LaunchAppendCentres(args, stream), "launch centres"));
    return CopyAppended(bank, args.k_id, args.v_id, flush.appended, stream);
  }

  // The patterns of id k_id and v_id, those that are not negative, as they stand in a frame.
  absl::Status CopyAppended(const DeviceBank& bank, int k_id, int v_id, uint16_t* out,
                            cudaStream_t stream) {
    if (out == nullptr) return absl::OkStatus();
    const size_t row_bytes = shape_.head_dim * sizeof(uint16_t);
    const size_t head_bytes = row_bytes * ((k_id >= 0 ? 1 : 0) + (v_id >= 0 ? 1 : 0));
    int64_t tensor_at = 0;
    for (const int id : {k_id, v_id}) {
      if (id >= 0) {
        const uint16_t* from = bank.patterns + tensor_at + int64_t{id} * shape_.head_dim;
        PKV_RETURN_IF_ERROR(CudaStatus(
            cudaMemcpy2DAsync(out, head_bytes, from, bank.capacity * row_bytes, row_bytes,
                              shape_.num_kv_heads, cudaMemcpyDeviceToDevice, stream),
            "copy appended patterns"));
        out += shape_.head_dim;
      }
      tensor_at += BankTensor(bank);
    }
    return absl::OkStatus();
  }

  const KvShape shape_;
  const CodecParams params_;
  const int max_tokens_;
  const ScratchSizes sizes_;
  DeviceBuffer scratch_;
  SideStream side_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<LayerCompressor>> MakeLayerCompressorCuda(
    const KvShape& shape, const CodecParams& params, int max_tokens, const ComputeContext& ctx) {
  int num_devices = 0;
  PKV_RETURN_IF_ERROR(CudaStatus(cudaGetDeviceCount(&num_devices), "count devices"));
  if (num_devices == 0) return absl::FailedPreconditionError("no CUDA device");
  PKV_ASSIGN_OR_RETURN(
      DeviceBuffer scratch,
      DeviceBuffer::Make(LayerCompressorCuda::ScratchBytes(shape, params, max_tokens), ctx.stream));
  PKV_RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(scratch.data(), 0, LayerCompressorCuda::kFlagBytes,
                                                 static_cast<cudaStream_t>(ctx.stream)),
                                 "clear finite flag"));
  PKV_ASSIGN_OR_RETURN(SideStream side, SideStream::Make());
  return std::make_unique<LayerCompressorCuda>(shape, params, max_tokens, std::move(scratch),
                                               std::move(side));
}

}  // namespace pkv
