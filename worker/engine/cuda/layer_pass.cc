#include "worker/engine/cuda/layer_pass.h"

#include <algorithm>

#include <cublas_v2.h>

#include "absl/strings/str_cat.h"
#include "kernels/device/cuda_status.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// What NVIDIA recommends for Hopper; given by us so that a pass can be captured into a graph.
constexpr size_t kWorkspaceBytes = size_t{32} << 20;

absl::Status BlasStatus(cublasStatus_t status, absl::string_view what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", cublasGetStatusString(status)));
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
  PKV_RETURN_IF_ERROR(BlasStatus(cublasCreate(&pass->blas_), "cublasCreate"));
  PKV_RETURN_IF_ERROR(BlasStatus(cublasSetStream(pass->blas_, static_cast<cudaStream_t>(stream)),
                                 "cublasSetStream"));
  PKV_RETURN_IF_ERROR(pass->Allocate(max_rows, chunk_rows, logit_rows));
  PKV_RETURN_IF_ERROR(
      BlasStatus(cublasSetWorkspace(pass->blas_, pass->workspace_.data(), pass->workspace_.size()),
                 "cublasSetWorkspace"));
  return pass;
}

LayerPass::~LayerPass() {
  if (blas_ != nullptr) cublasDestroy(blas_);
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
      cublasGemmEx(blas_, CUBLAS_OP_T, CUBLAS_OP_N, out_columns, rows, in, &alpha, weight, type, in,
                   x, type, in, &beta, out, fp32_out ? CUDA_R_32F : type, out_columns,
                   CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
      "cublasGemmEx");
}

absl::Status LayerPass::Embed(const int32_t* tokens, int rows) {
  return CudaStatus(LaunchEmbedRows(model_.type(), model_.embedding().data(), tokens, rows,
                                    model_.config().hidden_size, hidden_.As<float>(),
                                    static_cast<cudaStream_t>(stream_)),
                    "embedding");
}

absl::Status LayerPass::Project(int layer, int first_row, int rows, const KvTarget& to) {
  const ModelConfig& config = model_.config();
  const DeviceLayer& weights = model_.layer(layer);
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  PKV_RETURN_IF_ERROR(
      CudaStatus(LaunchNormRows(model_.type(), hidden_row(first_row),
                                reinterpret_cast<const float*>(weights.attention_norm.data()),
                                static_cast<float>(config.rms_norm_eps), rows, config.hidden_size,
                                normed_.data(), stream),
                 "attention norm"));
  PKV_RETURN_IF_ERROR(Multiply(weights.qkv.weight.data(), weights.qkv.in, weights.qkv.out,
                               normed_.data(), rows, false, true, qkv_.data()));
  RotaryRowsArgs args;
  args.qkv = qkv_.As<float>();
  args.bias = reinterpret_cast<const float*>(weights.qkv.bias.data());
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
  return CudaStatus(LaunchRotaryRows(model_.type(), args, stream), "rotary embedding");
}

absl::Status LayerPass::Finish(int layer, int first_row, int rows) {
  const ModelConfig& config = model_.config();
  const DeviceLayer& weights = model_.layer(layer);
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  float* hidden = hidden_row(first_row);
  const auto add_bias = [&](const DeviceLinear& linear) {
    if (linear.bias.size() == 0) return absl::OkStatus();
    return CudaStatus(LaunchAddBiasRows(reinterpret_cast<const float*>(linear.bias.data()), rows,
                                        linear.out, hidden, stream),
                      "bias");
  };
  PKV_RETURN_IF_ERROR(Multiply(weights.o.weight.data(), weights.o.in, weights.o.out,
                               attention_.data(), rows, true, true, hidden));
  PKV_RETURN_IF_ERROR(add_bias(weights.o));
  PKV_RETURN_IF_ERROR(CudaStatus(
      LaunchNormRows(model_.type(), hidden, reinterpret_cast<const float*>(weights.mlp_norm.data()),
                     static_cast<float>(config.rms_norm_eps), rows, config.hidden_size,
                     normed_.data(), stream),
      "mlp norm"));
  PKV_RETURN_IF_ERROR(Multiply(weights.gate_up.weight.data(), weights.gate_up.in,
                               weights.gate_up.out, normed_.data(), rows, false, false,
                               gate_up_.data()));
  PKV_RETURN_IF_ERROR(
      CudaStatus(LaunchSwiGluRows(model_.type(), gate_up_.data(),
                                  reinterpret_cast<const float*>(weights.gate_up.bias.data()), rows,
                                  config.intermediate_size, activated_.data(), stream),
                 "activation"));
  PKV_RETURN_IF_ERROR(Multiply(weights.down.weight.data(), weights.down.in, weights.down.out,
                               activated_.data(), rows, true, true, hidden));
  return add_bias(weights.down);
}

absl::Status LayerPass::Logits(int first_row, int rows) {
  const ModelConfig& config = model_.config();
  PKV_RETURN_IF_ERROR(
      CudaStatus(LaunchNormRows(model_.type(), hidden_row(first_row),
                                reinterpret_cast<const float*>(model_.final_norm().data()),
                                static_cast<float>(config.rms_norm_eps), rows, config.hidden_size,
                                normed_.data(), static_cast<cudaStream_t>(stream_)),
                 "final norm"));
  return Multiply(model_.lm_head(), config.hidden_size, config.vocab_size, normed_.data(), rows,
                  false, true, logits_.data());
}

}  // namespace pkv
