#ifndef PKV_WORKER_ENGINE_CUDA_LAYER_PASS_H_
#define PKV_WORKER_ENGINE_CUDA_LAYER_PASS_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device/device_buffer.h"
#include "worker/engine/cuda/cuda_model.h"
#include "worker/engine/cuda/streamed_product_kernels.h"

struct cublasContext;

namespace pkv {

struct CublasLibrary;

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
// attention(), Finish; at last Logits. Every call enqueues and returns, and may be captured into a
// CUDA graph.
//
// Products are cuBLAS's, but for passes of up to kStreamedRowsMax rows where Project and Finish
// take all rows at once: they stream the weights (streamed_product_kernels.h), if the model's
// widths allow, with norms and activations in the same kernels or beside them. The kernels of such
// a pass overlap, and one kernel of the caller's, attention, may do so too: it may start before q()
// and the KvTarget are written, and waits for that (weight_type.cuh says why this is safe).
//
// Sums and the residual stream are fp32, whatever the weights are. Equal shapes give equal bits, as
// long as LimitSms() is the same.
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

  // cuBLAS's products take this many multiprocessors at most from now on; 0: all. Their thread
  // blocks stay for a whole product, so that one which had to wait would double its time.
  absl::Status LimitSms(int num_sms);

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
  absl::Status PrepareStreamed(int max_rows);
  absl::Status Stream(StreamedProductArgs args);
  absl::Status ProjectStreamed(int layer, int rows, const RotaryRowsArgs& rotary);
  absl::Status FinishStreamed(int layer, int rows);
  // normed_ = norm of rows [first_row, + rows), to which `added` parts are added before.
  struct Addend {
    int num_parts = 0;
    const float* bias = nullptr;
    bool keeps_sum = false;
  };
  absl::Status Normalize(int first_row, int rows, const DeviceBuffer& weight, const Addend& added,
                         absl::string_view what);
  RotaryRowsArgs Rotary(int layer, int rows, const KvTarget& to);
  float* hidden_row(int row) {
    return hidden_.As<float>() + int64_t{row} * model_.config().hidden_size;
  }

  const CudaModel& model_;
  void* const stream_;
  const CublasLibrary* library_ = nullptr;
  cublasContext* blas_ = nullptr;
  DeviceBuffer workspace_;
  DeviceBuffer hidden_;  // [max_rows, hidden] fp32
  DeviceBuffer normed_;  // [chunk or logit rows, hidden]
  DeviceBuffer qkv_;     // [chunk, q + k + v] fp32
  DeviceBuffer q_, attention_;
  DeviceBuffer gate_up_, activated_;
  DeviceBuffer logits_;  // [logit rows, vocab] fp32

  // Of passes of few rows.
  struct Planned {
    StreamedProductShape shape;
    StreamedProductPlan plan;
    StreamedProductArgs Args(const std::byte* weight, const void* x, int rows, void* out) const;
  };
  Planned qkv_plan_, o_plan_, gate_up_plan_, down_plan_, head_plan_;
  bool has_plans_ = false, streams_ = false;  // streams_: in this pass
  int pass_rows_ = 0;
  DeviceBuffer tickets_;
  // [parts, rows, hidden] fp32 of the last o or down product, which the next norm adds to hidden_.
  DeviceBuffer parts_;
};

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_CUDA_LAYER_PASS_H_
