#include "worker/engine/cuda/layer_pass.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/device/cuda_status.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "worker/engine/cuda/cublas_library.h"

namespace pkv {
namespace {

// What NVIDIA recommends for Hopper; given by us so that a pass can be captured into a graph.
constexpr size_t kWorkspaceBytes = size_t{32} << 20;

absl::Status BlasStatus(const CublasLibrary& library, cublasStatus_t status,
                        absl::string_view what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", library.status_string(status)));
}

const float* BiasOf(const DeviceLinear& linear) {
  return reinterpret_cast<const float*>(linear.bias.data());
}

}  // namespace

absl::StatusOr<std::unique_ptr<LayerPass>> LayerPass::Make(const CudaModel* model, int max_rows,
                                                           int chunk_rows, int logit_rows,
                                                           void* stream) {
  if (chunk_rows < 1 || max_rows < chunk_rows || logit_rows < 0 || logit_rows > max_rows) {
    return absl::InvalidArgumentError(absl::StrCat("max_rows ", max_rows, ", chunk_rows ",
                                                   chunk_rows, ", logit_rows ", logit_rows,
                                                   ": the first must hold the others"));
  }
  auto pass = std::unique_ptr<LayerPass>(new LayerPass(model, stream));
  PKV_ASSIGN_OR_RETURN(pass->library_, CublasLibrary::Load());
  const CublasLibrary& library = *pass->library_;
  PKV_RETURN_IF_ERROR(BlasStatus(library, library.create(&pass->blas_), "cublasCreate"));
  PKV_RETURN_IF_ERROR(BlasStatus(library,
                                 library.set_stream(pass->blas_, static_cast<cudaStream_t>(stream)),
                                 "cublasSetStream"));
  PKV_RETURN_IF_ERROR(pass->Allocate(max_rows, chunk_rows, logit_rows));
  if (chunk_rows == max_rows) PKV_RETURN_IF_ERROR(pass->PrepareStreamed(max_rows));
  PKV_RETURN_IF_ERROR(BlasStatus(
      library, library.set_workspace(pass->blas_, pass->workspace_.data(), pass->workspace_.size()),
      "cublasSetWorkspace"));
  return pass;
}

absl::Status LayerPass::LimitSms(int num_sms) {
  return BlasStatus(*library_, library_->set_sm_count_target(blas_, num_sms),
                    "cublasSetSmCountTarget");
}

LayerPass::~LayerPass() {
  if (blas_ != nullptr) library_->destroy(blas_);
}

absl::Status LayerPass::Allocate(int max_rows, int chunk_rows, int logit_rows) {
  const ModelConfig& config = model_.config();
  const int64_t q_size = int64_t{config.num_qo_heads} * config.head_dim;
  const int64_t qkv_size = q_size + 2 * int64_t{config.num_kv_heads} * config.head_dim;
  const int64_t ffn = config.intermediate_size, chunk = chunk_rows;
  const struct {
    DeviceBuffer& buffer;
    int64_t bytes;
  } buffers[] = {
      {workspace_, kWorkspaceBytes},
      {hidden_, int64_t{max_rows} * config.hidden_size * 4},
      {normed_, std::max<int64_t>(chunk, logit_rows) * config.hidden_size * 2},
      {qkv_, chunk * qkv_size * 4},
      {q_, chunk * q_size * 2},
      {attention_, chunk * q_size * 2},
      {gate_up_, chunk * 2 * ffn * 2},
      {activated_, chunk * ffn * 2},
      {logits_, int64_t{logit_rows} * config.vocab_size * 4},
  };
  for (const auto& [buffer, bytes] : buffers) {
    PKV_ASSIGN_OR_RETURN(buffer, DeviceBuffer::Make(bytes, stream_));
  }
  return absl::OkStatus();
}

absl::Status LayerPass::Multiply(const std::byte* weight, int in, int out_columns, const void* x,
                                 int rows, bool accumulate, bool fp32_out, void* out) {
  const cudaDataType_t type = model_.type() == WeightType::kFloat16 ? CUDA_R_16F : CUDA_R_16BF;
  const float alpha = 1, beta = accumulate ? 1 : 0;
  // cuBLAS is column-major: it computes out^T [out_columns, rows] = weight x^T.
  return BlasStatus(
      *library_,
      library_->gemm_ex(blas_, CUBLAS_OP_T, CUBLAS_OP_N, out_columns, rows, in, &alpha, weight,
                        type, in, x, type, in, &beta, out, fp32_out ? CUDA_R_32F : type,
                        out_columns, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
      "cublasGemmEx");
}

absl::Status LayerPass::PrepareStreamed(int max_rows) {
  const ModelConfig& config = model_.config();
  const int hidden = config.hidden_size, ffn = config.intermediate_size, half = config.head_dim / 2;
  const int q_size = config.num_qo_heads * config.head_dim;
  const int qkv_size = q_size + 2 * config.num_kv_heads * config.head_dim;
  if (half % kTileHalf != 0) return absl::OkStatus();
  // A tile is 8 channels of a head and their partners in rotation; or 8 gates and their ups.
  qkv_plan_.shape = {qkv_size, hidden, half, half / kTileHalf, config.head_dim};
  gate_up_plan_.shape = {2 * ffn, hidden, ffn, ffn / kTileHalf, ffn};
  o_plan_.shape = {.n = hidden, .k = q_size, .max_parts = kNormPartsMax};
  down_plan_.shape = {.n = hidden, .k = ffn, .max_parts = kNormPartsMax};
  head_plan_.shape = {.n = config.vocab_size, .k = hidden};

  ProductDevice device;
  PKV_RETURN_IF_ERROR(CudaStatus(PrepareStreamedProducts(&device), "streamed products"));
  for (Planned* planned : {&qkv_plan_, &o_plan_, &gate_up_plan_, &down_plan_, &head_plan_}) {
    absl::StatusOr<StreamedProductPlan> plan =
        PlanStreamedProduct(planned->shape, device.num_sms, device.shared_bytes_max);
    if (absl::IsUnimplemented(plan.status())) return absl::OkStatus();  // cuBLAS takes any width
    PKV_ASSIGN_OR_RETURN(planned->plan, std::move(plan));
  }
  const int64_t rows = std::min(max_rows, kStreamedRowsMax);
  PKV_ASSIGN_OR_RETURN(parts_, DeviceBuffer::Make(rows * kNormPartsMax * hidden * 4, stream_));
  PKV_ASSIGN_OR_RETURN(tickets_, DeviceBuffer::Make(kNormPartsMax * sizeof(uint32_t), stream_));
  has_plans_ = true;
  return CudaStatus(
      cudaMemsetAsync(tickets_.data(), 0, tickets_.size(), static_cast<cudaStream_t>(stream_)),
      "clearing tickets");
}

StreamedProductArgs LayerPass::Planned::Args(const std::byte* weight, const void* x, int rows,
                                             void* out) const {
  StreamedProductArgs args;
  args.shape = shape;
  args.plan = plan;
  args.weight = weight;
  args.x = x;
  args.rows = rows;
  args.out = out;
  return args;
}

absl::Status LayerPass::Stream(StreamedProductArgs args) {
  args.tickets = tickets_.As<uint32_t>();
  return CudaStatus(LaunchStreamedProduct(model_.type(), args, static_cast<cudaStream_t>(stream_)),
                    "streamed product");
}

absl::Status LayerPass::Embed(const int32_t* tokens, int rows) {
  streams_ = has_plans_ && rows <= kStreamedRowsMax;
  pass_rows_ = rows;
  return CudaStatus(LaunchEmbedRows(model_.type(), model_.embedding().data(), tokens, rows,
                                    model_.config().hidden_size, hidden_.As<float>(),
                                    static_cast<cudaStream_t>(stream_)),
                    "embedding");
}

absl::Status LayerPass::Normalize(int first_row, int rows, const DeviceBuffer& weight,
                                  const Addend& added, absl::string_view what) {
  const ModelConfig& config = model_.config();
  NormRowsArgs args;
  args.x = hidden_row(first_row);
  args.num_parts = added.num_parts;
  args.parts = parts_.As<float>() + int64_t{first_row} * config.hidden_size;
  args.part_stride = int64_t{pass_rows_} * config.hidden_size;
  args.bias = added.bias;
  if (added.keeps_sum) args.sum = hidden_row(first_row);
  args.weight = reinterpret_cast<const float*>(weight.data());
  args.eps = static_cast<float>(config.rms_norm_eps);
  args.rows = rows;
  args.dim = config.hidden_size;
  args.out = normed_.data();
  return CudaStatus(LaunchNormRows(model_.type(), args, static_cast<cudaStream_t>(stream_)), what);
}

RotaryRowsArgs LayerPass::Rotary(int layer, int rows, const KvTarget& to) {
  const ModelConfig& config = model_.config();
  RotaryRowsArgs args;
  args.qkv = qkv_.As<float>();
  args.bias = reinterpret_cast<const float*>(model_.layer(layer).qkv.bias.data());
  args.rows = rows;
  args.num_qo_heads = config.num_qo_heads;
  args.num_kv_heads = config.num_kv_heads;
  args.head_dim = config.head_dim;
  args.positions = to.positions;
  args.first_position = to.first_position;
  args.cos_sin = model_.cos_sin();
  args.q = q_.data();
  args.k = to.k;
  args.v = to.v;
  args.kv_head_stride = to.kv_head_stride;
  args.kv_row_stride = to.kv_row_stride;
  args.not_finite = to.not_finite;
  args.not_finite_stride = to.not_finite_stride;
  return args;
}

absl::Status LayerPass::Project(int layer, int first_row, int rows, const KvTarget& to) {
  const DeviceLayer& weights = model_.layer(layer);
  const RotaryRowsArgs rotary = Rotary(layer, rows, to);
  PKV_CHECK(!streams_ || (first_row == 0 && rows == pass_rows_), first_row, " ", rows);
  if (streams_) return ProjectStreamed(layer, rows, rotary);
  PKV_RETURN_IF_ERROR(Normalize(first_row, rows, weights.attention_norm, {}, "attention norm"));
  PKV_RETURN_IF_ERROR(Multiply(weights.qkv.weight.data(), weights.qkv.in, weights.qkv.out,
                               normed_.data(), rows, false, true, qkv_.data()));
  return CudaStatus(LaunchRotaryRows(model_.type(), rotary, static_cast<cudaStream_t>(stream_)),
                    "rotary embedding");
}

absl::Status LayerPass::ProjectStreamed(int layer, int rows, const RotaryRowsArgs& rotary) {
  const DeviceLayer& weights = model_.layer(layer);
  Addend added;
  if (layer > 0) {
    added.num_parts = down_plan_.plan.num_parts;
    added.bias = BiasOf(model_.layer(layer - 1).down);
    added.keeps_sum = true;
  }
  PKV_RETURN_IF_ERROR(Normalize(0, rows, weights.attention_norm, added, "attention norm"));
  StreamedProductArgs args =
      qkv_plan_.Args(weights.qkv.weight.data(), normed_.data(), rows, nullptr);
  args.end = ProductEnd::kRotary;
  args.rotary = rotary;
  return Stream(args);
}

absl::Status LayerPass::FinishStreamed(int layer, int rows) {
  const DeviceLayer& weights = model_.layer(layer);
  PKV_RETURN_IF_ERROR(
      Stream(o_plan_.Args(weights.o.weight.data(), attention_.data(), rows, parts_.data())));
  const Addend added = {o_plan_.plan.num_parts, BiasOf(weights.o), true};
  PKV_RETURN_IF_ERROR(Normalize(0, rows, weights.mlp_norm, added, "mlp norm"));
  StreamedProductArgs gate_up =
      gate_up_plan_.Args(weights.gate_up.weight.data(), normed_.data(), rows, activated_.data());
  gate_up.end = ProductEnd::kSwiGlu;
  gate_up.bias = BiasOf(weights.gate_up);
  PKV_RETURN_IF_ERROR(Stream(gate_up));
  return Stream(
      down_plan_.Args(weights.down.weight.data(), activated_.data(), rows, parts_.data()));
}

absl::Status LayerPass::Finish(int layer, int first_row, int rows) {
  PKV_CHECK(!streams_ || (first_row == 0 && rows == pass_rows_), first_row, " ", rows);
  if (streams_) return FinishStreamed(layer, rows);
  const ModelConfig& config = model_.config();
  const DeviceLayer& weights = model_.layer(layer);
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  float* hidden = hidden_row(first_row);
  const auto add_bias = [&](const DeviceLinear& linear) {
    if (linear.bias.size() == 0) return absl::OkStatus();
    return CudaStatus(LaunchAddBiasRows(BiasOf(linear), rows, linear.out, hidden, stream), "bias");
  };
  PKV_RETURN_IF_ERROR(Multiply(weights.o.weight.data(), weights.o.in, weights.o.out,
                               attention_.data(), rows, true, true, hidden));
  PKV_RETURN_IF_ERROR(add_bias(weights.o));
  PKV_RETURN_IF_ERROR(Normalize(first_row, rows, weights.mlp_norm, {}, "mlp norm"));
  PKV_RETURN_IF_ERROR(Multiply(weights.gate_up.weight.data(), weights.gate_up.in,
                               weights.gate_up.out, normed_.data(), rows, false, false,
                               gate_up_.data()));
  PKV_RETURN_IF_ERROR(
      CudaStatus(LaunchSwiGluRows(model_.type(), gate_up_.data(), BiasOf(weights.gate_up), rows,
                                  config.intermediate_size, activated_.data(), stream),
                 "activation"));
  PKV_RETURN_IF_ERROR(Multiply(weights.down.weight.data(), weights.down.in, weights.down.out,
                               activated_.data(), rows, true, true, hidden));
  return add_bias(weights.down);
}

absl::Status LayerPass::Logits(int first_row, int rows) {
  const ModelConfig& config = model_.config();
  Addend added;  // hidden_ stays without it: rows may be asked for again
  if (streams_) {
    added.num_parts = down_plan_.plan.num_parts;
    added.bias = BiasOf(model_.layer(config.num_layers - 1).down);
  }
  PKV_RETURN_IF_ERROR(Normalize(first_row, rows, model_.final_norm(), added, "final norm"));
  if (!streams_) {
    return Multiply(model_.lm_head(), config.hidden_size, config.vocab_size, normed_.data(), rows,
                    false, true, logits_.data());
  }
  return Stream(head_plan_.Args(model_.lm_head(), normed_.data(), rows, logits_.data()));
}

}  // namespace pkv
