#include "worker/engine/cuda/cuda_prefill.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "kernels/device/cuda_status.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "worker/engine/compression_share.h"

namespace pkv {
namespace {

// Shorter prompts gain nothing: their layers end before a few multiprocessors have compressed one.
constexpr int kMinConfinedTokens = 4096;
// At most a 32nd of the device is set apart: without more, products take longer
// (kernels/PERFORMANCE.md).
constexpr int kPartOfDevice = 32;

absl::Status CheckRequest(const PrefillRequest& request, int max_tokens) {
  const int num_tokens = static_cast<int>(request.tokens.size());
  if (num_tokens > max_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat(num_tokens, " tokens, this worker computes at most ", max_tokens));
  }
  if (request.first_token < 0 || request.first_token % kBlockTokens != 0 ||
      request.first_token > request.num_blocks * kBlockTokens ||
      request.num_blocks * kBlockTokens > num_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        num_tokens, " tokens, ", request.num_blocks, " blocks, a prefix of ", request.first_token,
        ": blocks must fit the tokens, and the prefix be some of them"));
  }
  return absl::OkStatus();
}

}  // namespace

CudaPrefill::CudaPrefill(const CudaModel* model, const CodecParams& params, const Options& options,
                         Streams streams)
    : model_(*model), params_(params), options_(options), streams_(std::move(streams)) {}

absl::StatusOr<std::unique_ptr<CudaPrefill>> CudaPrefill::Make(const CudaModel* model,
                                                               const CodecParams& params,
                                                               const Options& given) {
  Options options = given;
  options.chunk_tokens = std::min(options.chunk_tokens, options.max_tokens);
  if (options.max_tokens < kBlockTokens || options.max_tokens % kBlockTokens != 0 ||
      options.chunk_tokens < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_tokens ", given.max_tokens, ", chunk_tokens ", given.chunk_tokens,
        ": the first must be a positive multiple of ", kBlockTokens, ", the second positive"));
  }
  if (options.compression_sms < 0 || options.compression_sms % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("compression_sms ", options.compression_sms, " is no even number from 0 up"));
  }
  PKV_ASSIGN_OR_RETURN(Stream compute, Stream::Make(options.priority));
  PKV_ASSIGN_OR_RETURN(Stream compress, Stream::Make());
  PKV_ASSIGN_OR_RETURN(Stream queries, Stream::Make());
  auto prefill = std::unique_ptr<CudaPrefill>(new CudaPrefill(
      model, params, options, {std::move(compute), std::move(compress), std::move(queries)}));
  PKV_RETURN_IF_ERROR(prefill->Allocate());
  if (options.compress && options.compression_sms != 0) PKV_RETURN_IF_ERROR(prefill->Confine());
  return prefill;
}

absl::Status CudaPrefill::Allocate() {
  const ModelConfig& config = model_.config();
  const ComputeContext ctx = {Device::kCuda, nullptr, stream()};
  const QueryType type =
      model_.type() == WeightType::kFloat16 ? QueryType::kFloat16 : QueryType::kBfloat16;
  PKV_ASSIGN_OR_RETURN(
      pass_, LayerPass::Make(&model_, options_.max_tokens, options_.chunk_tokens, 0, stream()));
  PKV_ASSIGN_OR_RETURN(attention_, PrefillAttention::Make({config.num_qo_heads, config.num_kv_heads,
                                                           config.head_dim, type, type},
                                                          ctx));
  if (options_.compress) {
    PKV_ASSIGN_OR_RETURN(compressor_,
                         LayerCompressor::Make(config.kv_shape(), params_, options_.max_tokens,
                                               {Device::kCuda, nullptr, compress_stream()}));
    if (params_.feedback_k || params_.encoding.k_fine_tokens > 0) {
      PKV_ASSIGN_OR_RETURN(
          statistics_, QueryStatistics::Make(
                           {config.num_qo_heads, config.num_kv_heads, config.head_dim, type}, ctx));
    }
  }
  const int64_t kv_bytes =
      int64_t{2} * config.num_kv_heads * options_.max_tokens * config.head_dim * 2;
  PKV_ASSIGN_OR_RETURN(tokens_, DeviceBuffer::Make(size_t(options_.max_tokens) * 4, stream()));
  PKV_ASSIGN_OR_RETURN(not_finite_, DeviceBuffer::Make(sizeof(int32_t), stream()));
  if (wants_statistics()) {
    PKV_ASSIGN_OR_RETURN(
        lse_,
        DeviceBuffer::Make(size_t(options_.chunk_tokens) * config.num_qo_heads * 4, stream()));
    PKV_ASSIGN_OR_RETURN(
        importance_,
        DeviceBuffer::Make(size_t(config.num_kv_heads) * options_.max_tokens * 4, stream()));
  }
  for (int i = 0; i < 2; ++i) {
    PKV_ASSIGN_OR_RETURN(kv_[i], DeviceBuffer::Make(kv_bytes, stream()));
    PKV_ASSIGN_OR_RETURN(ready_[i], Event::Make());
    PKV_ASSIGN_OR_RETURN(released_[i], Event::Make());
  }
  for (Event* event : {&started_, &attended_, &sampled_, &summed_, &asked_}) {
    PKV_ASSIGN_OR_RETURN(*event, Event::Make());
  }
  return streams_.compute.Synchronize();
}

absl::Status CudaPrefill::Confine() {
  int device = 0;
  PKV_RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&device), "the current device"));
  PKV_RETURN_IF_ERROR(CudaStatus(
      cudaDeviceGetAttribute(&num_sms_, cudaDevAttrMultiProcessorCount, device), "its SMs"));
  if (model_.config().num_layers <= 2 || options_.compression_sms * kPartOfDevice > num_sms_ ||
      !CompressionKeepsUp(model_.config(), params_, options_.compression_sms, num_sms_)) {
    return absl::OkStatus();
  }
  absl::StatusOr<SmPartition> partition = SmPartition::Make(options_.compression_sms);
  if (absl::IsUnimplemented(partition.status())) {
    Log(LogLevel::kWarning, "compression shares all multiprocessors",
        {{"reason", partition.status().message()}});
    return absl::OkStatus();
  }
  PKV_RETURN_IF_ERROR(partition.status());
  PKV_ASSIGN_OR_RETURN(Stream compress, partition->MakeStream());
  PKV_ASSIGN_OR_RETURN(Stream queries, partition->MakeStream());
  confined_.emplace(*std::move(partition), std::move(compress), std::move(queries));
  return absl::OkStatus();
}

MutableKvTensorView CudaPrefill::kv(int layer, int num_tokens) {
  const ModelConfig& config = model_.config();
  const int64_t head_stride = int64_t{options_.max_tokens} * config.head_dim;
  uint16_t* k = kv_[layer % 2].As<uint16_t>();
  return {k,
          k + config.num_kv_heads * head_stride,
          config.num_kv_heads,
          num_tokens,
          config.head_dim,
          head_stride};
}

absl::Status CudaPrefill::AttendChunk(int layer, int first, int rows) {
  const ModelConfig& config = model_.config();
  const ComputeContext ctx = {Device::kCuda, nullptr, stream()};
  const int64_t q_stride = int64_t{config.num_qo_heads} * config.head_dim;
  // Nothing reads what the last layer's attention gives.
  const bool attends = layer + 1 < config.num_layers;
  float* lse = wants_statistics() && attends ? lse_.As<float>() : nullptr;
  if (attends) {
    PrefillAttentionArgs args;
    args.num_queries = rows;
    args.sm_scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim));
    args.q = pass_->q();
    args.q_stride = args.out_stride = q_stride;
    args.kv = kv(layer, first + rows);
    args.out = pass_->attention();
    args.lse = lse;
    PKV_RETURN_IF_ERROR(attention_->Run(args, ctx));
  }
  return wants_statistics() ? SampleChunk(first, rows, lse) : absl::OkStatus();
}

absl::Status CudaPrefill::SampleChunk(int first, int rows, const float* lse) {
  const ModelConfig& config = model_.config();
  void* queries = streams_.queries.handle();
  QueryChunk chunk;
  chunk.first_token = first;
  chunk.num_queries = rows;
  chunk.q = pass_->q();
  chunk.q_stride = int64_t{config.num_qo_heads} * config.head_dim;
  chunk.lse = lse;
  PKV_RETURN_IF_ERROR(attended_.Record(stream()));
  PKV_RETURN_IF_ERROR(attended_.MakeWait(queries));
  PKV_RETURN_IF_ERROR(statistics_->Add(chunk, {Device::kCuda, nullptr, queries}));
  return sampled_.Record(queries);
}

absl::Status CudaPrefill::ComputeLayer(const PrefillRequest& request, int layer) {
  const ModelConfig& config = model_.config();
  const int num_tokens = static_cast<int>(request.tokens.size());
  // Whoever read this buffer two layers ago is through.
  PKV_RETURN_IF_ERROR(released_[layer % 2].MakeWait(stream()));
  const MutableKvTensorView kv = this->kv(layer, num_tokens);
  if (request.first_token > 0) {
    MutableKvTensorView prefix = kv;
    prefix.num_tokens = request.first_token;
    PKV_RETURN_IF_ERROR(request.load_prefix(layer, prefix, stream()));
  }
  if (wants_statistics()) {
    PKV_RETURN_IF_ERROR(statistics_->Start(request.first_token, num_tokens,
                                           {Device::kCuda, nullptr, streams_.queries.handle()}));
  }
  const bool is_last = layer + 1 == config.num_layers;
  for (int first = request.first_token; first < num_tokens; first += options_.chunk_tokens) {
    const int rows = std::min(options_.chunk_tokens, num_tokens - first);
    const int row = first - request.first_token;
    KvTarget to;
    to.first_position = first;
    to.k = kv.k + int64_t{first} * config.head_dim;
    to.v = kv.v + int64_t{first} * config.head_dim;
    to.kv_head_stride = kv.head_stride;
    to.kv_row_stride = config.head_dim;
    to.not_finite = not_finite_.As<int32_t>();
    if (wants_statistics()) PKV_RETURN_IF_ERROR(sampled_.MakeWait(stream()));
    PKV_RETURN_IF_ERROR(pass_->Project(layer, row, rows, to));
    PKV_RETURN_IF_ERROR(AttendChunk(layer, first, rows));
    if (!is_last) PKV_RETURN_IF_ERROR(pass_->Finish(layer, row, rows));
  }
  return absl::OkStatus();
}

absl::Status CudaPrefill::AskQueries(const PrefillRequest& request, int layer,
                                     LayerCompression& compression) {
  const ModelConfig& config = model_.config();
  void* queries = streams_.queries.handle();
  PKV_RETURN_IF_ERROR(ready_[layer % 2].MakeWait(queries));
  // What they said of the layer before is used up.
  PKV_RETURN_IF_ERROR(released_[(layer + 1) % 2].MakeWait(queries));
  // By clusters of thread blocks, which no confined stream launches.
  PKV_RETURN_IF_ERROR(statistics_->Sum({Device::kCuda, nullptr, queries}));
  if (Confines(layer)) {
    PKV_RETURN_IF_ERROR(summed_.Record(queries));
    queries = confined_->queries.handle();
    PKV_RETURN_IF_ERROR(summed_.MakeWait(queries));
  }
  const ComputeContext ctx = {Device::kCuda, nullptr, queries};
  const int64_t num_vectors = statistics_->num_vectors();
  if (params_.feedback_k && num_vectors > 0) {
    const double shrinkage = static_cast<double>(config.head_dim) / num_vectors;
    PKV_ASSIGN_OR_RETURN(
        compression.feedback,
        statistics_->Feedback(params_.encoding.rotated, params_.feedback_damping + shrinkage, ctx));
  }
  if (params_.encoding.k_fine_tokens > 0) {
    if (layer + 1 == config.num_layers) {  // without attention
      PKV_RETURN_IF_ERROR(
          statistics_->ScoreSamples(kv(layer, static_cast<int>(request.tokens.size())), ctx));
    }
    float* importance = importance_.As<float>();
    PKV_RETURN_IF_ERROR(
        statistics_->Importance(compression.kv, request.first_token, importance, ctx));
    compression.importance = importance;
  }
  compression.queries_asked = asked_.handle();
  return asked_.Record(queries);
}

absl::Status CudaPrefill::CompressLayer(const PrefillRequest& request, int layer) {
  PKV_RETURN_IF_ERROR(ready_[layer % 2].Record(stream()));
  if (!options_.compress) return released_[layer % 2].Record(stream());
  const bool confines = Confines(layer);
  void* stream = confines ? confined_->compress.handle() : compress_stream();
  PKV_RETURN_IF_ERROR(ready_[layer % 2].MakeWait(stream));
  // The layer before may have been compressed on the other stream.
  PKV_RETURN_IF_ERROR(released_[(layer + 1) % 2].MakeWait(stream));
  const int block_tokens = request.num_blocks * kBlockTokens;
  const int count = block_tokens - request.first_token;
  const KvTensorView all = kv(layer, static_cast<int>(request.tokens.size()));
  PKV_ASSIGN_OR_RETURN(const PrefillTarget target, request.target(layer));
  if (count > 0) {
    LayerCompression compression;
    compression.kv = all.Tokens(request.first_token, count);
    if (wants_statistics()) PKV_RETURN_IF_ERROR(AskQueries(request, layer, compression));
    compression.at_start = request.first_token == 0;
    compression.mine = target.mine;
    compression.bank = target.bank;
    compression.pages = target.pages;
    compression.page_stride = target.page_stride;
    compression.page_ids = target.page_ids;
    compression.sinks = target.sinks;
    compression.is_confined = confines;
    PKV_RETURN_IF_ERROR(compressor_->Compress(compression, {Device::kCuda, nullptr, stream}));
  }
  const KvTensorView window = all.Tokens(block_tokens, all.num_tokens - block_tokens);
  PKV_RETURN_IF_ERROR(request.on_compressed(layer, target, window, stream));
  return released_[layer % 2].Record(stream);
}

absl::Status CudaPrefill::RunLayers(const PrefillRequest& request) {
  const int count = static_cast<int>(request.tokens.size()) - request.first_token;
  const cudaStream_t stream = static_cast<cudaStream_t>(this->stream());
  confines_prompt_ = confined_.has_value() && count >= kMinConfinedTokens;
  PKV_RETURN_IF_ERROR(pass_->LimitSms(confines_prompt_ ? num_sms_ - compression_sms() : 0));
  if (confines_prompt_) {
    PKV_RETURN_IF_ERROR(started_.Record(compress_stream()));
    PKV_RETURN_IF_ERROR(started_.MakeWait(confined_->compress.handle()));
  }
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpyAsync(tokens_.data(), request.tokens.data() + request.first_token,
                                 size_t(count) * 4, cudaMemcpyHostToDevice, stream),
                 "upload tokens"));
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaMemsetAsync(not_finite_.data(), 0, sizeof(int32_t), stream), "clear flag"));
  PKV_RETURN_IF_ERROR(pass_->Embed(tokens_.As<int32_t>(), count));
  for (int layer = 0; layer < model_.config().num_layers; ++layer) {
    // At most two layers are enqueued ahead, so that a cancelled request ends soon.
    PKV_RETURN_IF_ERROR(ready_[layer % 2].Synchronize());
    if (request.cancelled && request.cancelled()) {
      return absl::CancelledError("the caller went away");
    }
    PKV_RETURN_IF_ERROR(ComputeLayer(request, layer));
    PKV_RETURN_IF_ERROR(CompressLayer(request, layer));
  }
  return absl::OkStatus();
}

absl::Status CudaPrefill::Run(const PrefillRequest& request) {
  PKV_RETURN_IF_ERROR(CheckRequest(
      request, std::min(options_.max_tokens, model_.config().max_position_embeddings)));
  if (request.first_token == static_cast<int>(request.tokens.size())) return absl::OkStatus();
  absl::Status status = RunLayers(request);
  // Whatever happened, nothing is under way when this returns.
  for (const Stream* each : {&streams_.compute, &streams_.compress, &streams_.queries}) {
    status.Update(each->Synchronize());
  }
  if (confined_.has_value()) {
    status.Update(confined_->queries.Synchronize());
    status.Update(confined_->compress.Synchronize());
  }
  // Also behind a failure: the next prompt starts without what this one's values left.
  absl::Status finite;
  if (compressor_ != nullptr) {
    finite = compressor_->CheckFinite({Device::kCuda, nullptr, compress_stream()});
  }
  PKV_RETURN_IF_ERROR(status);
  int32_t not_finite = 0;
  PKV_RETURN_IF_ERROR(not_finite_.CopyToHost(std::as_writable_bytes(std::span(&not_finite, 1))));
  if (not_finite != 0) return absl::OutOfRangeError("K or V of a token is beyond fp16");
  return finite;
}

}  // namespace pkv
