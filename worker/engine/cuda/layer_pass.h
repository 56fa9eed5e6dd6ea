#ifndef PKV_WORKER_ENGINE_CUDA_LAYER_PASS_H_
#define PKV_WORKER_ENGINE_CUDA_LAYER_PASS_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device/device_buffer.h"
#include "worker/engine/cuda/cuda_model.h"

struct cublasContext;

namespace pkv {

// Where the rows' K and V go, and at which positions they stand (layer_math_kernels.h).
struct KvTarget {
  const int32_t* positions = nullptr;
  int first_position = 0;
  uint16_t* k = nullptr;
  uint16_t* v = nullptr;
  int64_t kv_head_stride = 0, kv_row_stride = 0;
  int32_t* not_finite = nullptr;
  int not_finite_stride = 0;
};

// The arithmetic of a forward pass but for attention, on one stream, with the activations it needs:
// Embed, then for each layer and each run of rows Project, attention by the caller from q() to
// attention(), Finish; at last Logits. GEMMs by cuBLAS. Every call enqueues and returns, and may be
// captured into a CUDA graph.
//
// Sums and the residual stream are fp32, whatever the weights are. Equal shapes give equal bits.
// Thread-compatible.
class LayerPass {
 public:
  // For passes of up to `max_rows` tokens, of which Project and Finish take up to `chunk_rows` at a
  // time, and Logits up to `logit_rows`. `model` outlives the pass; `stream` is a cudaStream_t.
  static absl::StatusOr<std::unique_ptr<LayerPass>> Make(const CudaModel* model, int max_rows,
                                                         int chunk_rows, int logit_rows,
                                                         void* stream);
  ~LayerPass();
  LayerPass(const LayerPass&) = delete;
  LayerPass& operator=(const LayerPass&) = delete;

  // Rows [0, rows) become the embeddings of `tokens`, on the device.
  absl::Status Embed(const int32_t* tokens, int rows);
  // Normalises rows [first_row, + rows) and projects them: Q to q(), K and V to `to`.
  absl::Status Project(int layer, int first_row, int rows, const KvTarget& to);
  // [rows, num_qo_heads, head_dim] of the model's type, of the last Project: what attention reads,
  // and where it writes.
  void* q() { return q_.data(); }
  void* attention() { return attention_.data(); }
  // Rows [first_row, + rows) += o(attention()), then += mlp(norm(rows)).
  absl::Status Finish(int layer, int first_row, int rows);
  // logits() of rows [first_row, + rows).
  absl::Status Logits(int first_row, int rows);
  const float* logits() const { return reinterpret_cast<const float*>(logits_.data()); }

  const CudaModel& model() const { return model_; }
  void* stream() const { return stream_; }

 private:
  LayerPass(const CudaModel* model, void* stream) : model_(*model), stream_(stream) {}
  absl::Status Allocate(int max_rows, int chunk_rows, int logit_rows);
  // out = x weight^T, or += when `accumulate`; x of the model's type, out fp32 or of that type.
  absl::Status Multiply(const std::byte* weight, int in, int out_columns, const void* x, int rows,
                        bool accumulate, bool fp32_out, void* out);
  float* hidden_row(int row) {
    return hidden_.As<float>() + int64_t{row} * model_.config().hidden_size;
  }

  const CudaModel& model_;
  void* const stream_;
  cublasContext* blas_ = nullptr;
  DeviceBuffer workspace_;
  DeviceBuffer hidden_;  // [max_rows, hidden] fp32
  DeviceBuffer normed_;  // [chunk or logit rows, hidden]
  DeviceBuffer qkv_;     // [chunk, q + k + v] fp32
  DeviceBuffer q_, attention_;
  DeviceBuffer gate_up_, activated_;
  DeviceBuffer logits_;  // [logit rows, vocab] fp32
};

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_CUDA_LAYER_PASS_H_
