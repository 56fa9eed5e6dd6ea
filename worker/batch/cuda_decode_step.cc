#include "worker/batch/cuda_decode_step.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include <cuda_runtime_api.h>

#include "kernels/device/cuda_status.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// The numbers of rows that steps are padded to, so that few graphs serve all.
int PaddedRows(int rows, int max_rows) {
  const int multiple = rows <= 2 ? 1 : rows <= 8 ? 2 : rows <= 64 ? 8 : 16;
  return std::min((rows + multiple - 1) / multiple * multiple, max_rows);
}

// Loading of modules and cuBLAS's choice of kernels happen in the first runs, and may not be
// captured.
constexpr int kRunsBeforeCapture = 2;

}  // namespace

absl::StatusOr<std::unique_ptr<CudaDecodeStep>> CudaDecodeStep::Make(const CudaModel* model,
                                                                     CudaPools* pools,
                                                                     const CodecParams& params,
                                                                     const Options& options) {
  PKV_CHECK(options.max_rows >= 1 && options.max_blocks >= 1, options.max_rows, " ",
            options.max_blocks);
  PKV_ASSIGN_OR_RETURN(Stream stream, Stream::Make());
  auto step =
      std::unique_ptr<CudaDecodeStep>(new CudaDecodeStep(pools, std::move(stream), options));
  PKV_RETURN_IF_ERROR(step->Allocate(model, params));
  return step;
}

CudaDecodeStep::~CudaDecodeStep() {
  stream_.Synchronize().IgnoreError();
  for (auto& [rows, graph] : graphs_) {
    if (graph.exec != nullptr) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph.exec));
  }
}

absl::Status CudaDecodeStep::Allocate(const CudaModel* model, const CodecParams& params) {
  const ModelConfig& config = model->config();
  PKV_ASSIGN_OR_RETURN(pass_, LayerPass::Make(model, max_rows_, max_rows_, max_rows_, stream()));
  DecodeAttentionShape shape;
  shape.num_qo_heads = config.num_qo_heads;
  shape.num_kv_heads = config.num_kv_heads;
  shape.head_dim = config.head_dim;
  shape.encoding = params.encoding;
  shape.num_sinks = params.encoding.is_fp16() ? 0 : params.num_sinks;
  shape.query_type =
      model->type() == WeightType::kFloat16 ? QueryType::kFloat16 : QueryType::kBfloat16;
  // The kernel before it turns the queries: it writes no table, length or page.
  shape.overlaps_previous = true;
  const ComputeContext ctx = {Device::kCuda, nullptr, stream()};
  absl::StatusOr<std::unique_ptr<DecodeAttention>> attention = DecodeAttention::Make(shape, ctx);
  if (absl::IsUnimplemented(attention.status())) {
    shape.kernel = DecodeKernel::kCudaCore;
    attention = DecodeAttention::Make(shape, ctx);
  }
  PKV_RETURN_IF_ERROR(attention.status());
  attention_ = *std::move(attention);

  const size_t table_bytes = (size_t{kNumTables} + max_blocks_) * max_rows_ * sizeof(int32_t);
  const size_t kv_bytes = size_t(max_rows_) * config.num_kv_heads * config.head_dim * 2;
  const size_t result_bytes = size_t{3} * max_rows_ * sizeof(int32_t);
  PKV_ASSIGN_OR_RETURN(host_tables_, PinnedBuffer::Make(table_bytes));
  PKV_ASSIGN_OR_RETURN(host_results_, PinnedBuffer::Make(result_bytes));
  PKV_ASSIGN_OR_RETURN(tables_, DeviceBuffer::Make(table_bytes, stream()));
  PKV_ASSIGN_OR_RETURN(token_k_, DeviceBuffer::Make(kv_bytes, stream()));
  PKV_ASSIGN_OR_RETURN(token_v_, DeviceBuffer::Make(kv_bytes, stream()));
  PKV_ASSIGN_OR_RETURN(results_, DeviceBuffer::Make(result_bytes, stream()));
  return absl::OkStatus();
}

absl::Status CudaDecodeStep::Upload(std::span<const DecodeRow> rows, int padded) {
  int32_t* block_tables = host_table(kNumTables);
  for (int i = 0; i < padded; ++i) {
    // A padding row attends to nothing but its own token, and writes to the spare slot.
    DecodeRow row;
    row.slot = pools_.sizes().num_slots;
    if (i < static_cast<int>(rows.size())) row = rows[i];
    PKV_CHECK(static_cast<int>(row.pages.size()) <= max_blocks_, row.pages.size());
    host_table(kTokens)[i] = row.token;
    host_table(kPositions)[i] = row.position;
    host_table(kNumBlocks)[i] = static_cast<int32_t>(row.pages.size());
    host_table(kNumWindowTokens)[i] = row.num_window_tokens;
    host_table(kSlots)[i] = row.slot;
    host_table(kNumPatterns)[2 * i] = row.num_patterns_k;
    host_table(kNumPatterns)[2 * i + 1] = row.num_patterns_v;
    std::copy(row.pages.begin(), row.pages.end(), block_tables + int64_t{i} * max_blocks_);
  }
  const size_t bytes =
      (size_t{kNumTables} * max_rows_ + size_t(padded) * max_blocks_) * sizeof(int32_t);
  return CudaStatus(cudaMemcpyAsync(tables_.data(), host_tables_.data(), bytes,
                                    cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream())),
                    "upload tables");
}

absl::Status CudaDecodeStep::Enqueue(int rows,
                                     const std::function<absl::Status(int)>& before_layer) {
  const ModelConfig& config = pass_->model().config();
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_.handle());
  const ComputeContext ctx = {Device::kCuda, nullptr, stream};
  int32_t* results = results_.As<int32_t>();
  int32_t* not_finite = results + 2 * max_rows_;
  KvTarget to;
  to.positions = table(kPositions);
  to.k = token_k_.As<uint16_t>();
  to.v = token_v_.As<uint16_t>();
  to.kv_head_stride = config.head_dim;
  to.kv_row_stride = int64_t{config.num_kv_heads} * config.head_dim;
  to.not_finite = not_finite;
  to.not_finite_stride = 1;
  DecodeAttentionArgs args;
  args.batch = rows;
  args.sm_scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim));
  args.q = pass_->q();
  args.out = pass_->attention();
  args.block_table = table(kNumTables);
  args.block_table_stride = max_blocks_;
  args.num_blocks = table(kNumBlocks);
  args.window_ids = args.sink_ids = args.bank_ids = table(kSlots);
  args.num_window_tokens = table(kNumWindowTokens);
  args.num_patterns = table(kNumPatterns);
  args.token_k = to.k;
  args.token_v = to.v;
  // One plan for all layers: their pages, windows and banks differ, not the tables.
  pools_.SetPools(0, args);
  PKV_RETURN_IF_ERROR(attention_->Plan(args, ctx));
  args.is_planned = true;
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaMemsetAsync(not_finite, 0, rows * sizeof(int32_t), stream), "clear flags"));
  PKV_RETURN_IF_ERROR(pass_->Embed(table(kTokens), rows));
  for (int layer = 0; layer < config.num_layers; ++layer) {
    if (before_layer) PKV_RETURN_IF_ERROR(before_layer(layer));
    PKV_RETURN_IF_ERROR(pass_->Project(layer, 0, rows, to));
    pools_.SetPools(layer, args);
    PKV_RETURN_IF_ERROR(attention_->Run(args, ctx));
    PKV_RETURN_IF_ERROR(pass_->Finish(layer, 0, rows));
  }
  PKV_RETURN_IF_ERROR(pass_->Logits(0, rows));
  PKV_RETURN_IF_ERROR(
      CudaStatus(LaunchGreedyRows(pass_->logits(), rows, config.vocab_size, results,
                                  reinterpret_cast<float*>(results + max_rows_), stream),
                 "greedy tokens"));
  return CudaStatus(cudaMemcpyAsync(host_results_.data(), results, host_results_.size(),
                                    cudaMemcpyDeviceToHost, stream),
                    "read tokens");
}

absl::Status CudaDecodeStep::Capture(int rows) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_.handle());
  // Other threads go on allocating and copying meanwhile.
  PKV_RETURN_IF_ERROR(CudaStatus(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                                 "begin capture"));
  const absl::Status enqueued = Enqueue(rows, nullptr);
  cudaGraph_t graph = nullptr;
  const absl::Status ended = CudaStatus(cudaStreamEndCapture(stream, &graph), "end capture");
  cudaGraphExec_t exec = nullptr;
  absl::Status made = enqueued.ok() ? ended : enqueued;
  if (made.ok()) made = CudaStatus(cudaGraphInstantiate(&exec, graph, 0), "instantiate graph");
  if (graph != nullptr) cudaGraphDestroy(graph);
  graphs_[rows].exec = exec;
  return made;
}

absl::Status CudaDecodeStep::Replay(int rows) {
  Graph& graph = graphs_[rows];
  if (graph.runs++ < kRunsBeforeCapture) return Enqueue(rows, nullptr);
  if (graph.exec == nullptr) PKV_RETURN_IF_ERROR(Capture(rows));
  return CudaStatus(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph.exec),
                                    static_cast<cudaStream_t>(stream())),
                    "launch graph");
}

absl::Status CudaDecodeStep::Run(std::span<const DecodeRow> rows,
                                 const std::function<absl::Status(int)>& before_layer) {
  const int count = static_cast<int>(rows.size());
  PKV_CHECK(count <= max_rows_, count, " rows of ", max_rows_);
  if (count == 0) return absl::OkStatus();
  const int padded = PaddedRows(count, max_rows_);
  PKV_RETURN_IF_ERROR(Upload(rows, padded));
  const absl::Status enqueued = before_layer ? Enqueue(padded, before_layer) : Replay(padded);
  const absl::Status passed = stream_.Synchronize();
  return enqueued.ok() ? passed : enqueued;
}

float CudaDecodeStep::greedy_logprob(int row) const {
  return std::bit_cast<float>(results()[max_rows_ + row]);
}

absl::Status CudaDecodeStep::CopyLogits(int row, std::span<float> out) {
  PKV_RETURN_IF_ERROR(CudaStatus(
      cudaMemcpyAsync(out.data(), pass_->logits() + row * int64_t(out.size()), out.size_bytes(),
                      cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream())),
      "read logits"));
  return stream_.Synchronize();
}

}  // namespace pkv
