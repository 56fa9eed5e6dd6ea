#ifndef PKV_WORKER_ENGINE_CUDA_LAYER_MATH_KERNELS_H_
#define PKV_WORKER_ENGINE_CUDA_LAYER_MATH_KERNELS_H_

// What a Llama layer computes between its matrix products and attention, on the device: the twin of
// layer_math.h. Sums and the residual stream are fp32; what enters a matrix product has the type of
// the weights. All pointers are on the device. No rows: nothing happens.

#include <cstdint>

#include <cuda_runtime_api.h>

namespace pkv {

enum class WeightType { kFloat16, kBfloat16 };

// hidden[i] = table[tokens[i]], rows of `dim`. table: [vocab, dim] of `type`.
cudaError_t LaunchEmbedRows(WeightType type, const void* table, const int32_t* tokens, int rows,
                            int dim, float* hidden, cudaStream_t stream);

// The most that a row of LaunchNormRows() has.
inline constexpr int kNormDimMax = 8192;
inline constexpr int kNormPartsMax = 4;

struct NormRowsArgs {
  const float* x = nullptr;  // [rows, dim]
  // What is added to x before, in this order: up to kNormPartsMax [rows, dim], part_stride elements
  // apart, a multiple of 4, and to every row bias [dim], or null.
  const float* parts = nullptr;
  int num_parts = 0;
  int64_t part_stride = 0;
  const float* bias = nullptr;
  float* sum = nullptr;           // where x with these goes, which may be x; or null
  const float* weight = nullptr;  // [dim]; written before a chain of overlapping kernels begins
  float eps = 0;
  int rows = 0, dim = 0;  // dim: a multiple of 4, kNormDimMax at most
  void* out = nullptr;    // [rows, dim] of the type
};

// out = x / sqrt(mean(x^2) + eps) * weight, rows of `dim`. May start while the kernel before still
// runs (weight_type.cuh).
cudaError_t LaunchNormRows(WeightType type, const NormRowsArgs& args, cudaStream_t stream);

// The projections of one forward pass on their way to attention.
struct RotaryRowsArgs {
  const float* qkv = nullptr;   // [rows, num_qo_heads + 2 num_kv_heads, head_dim]: Q, K, V
  const float* bias = nullptr;  // [num_qo_heads + 2 num_kv_heads, head_dim] or null
  int rows = 0;
  int num_qo_heads = 0, num_kv_heads = 0, head_dim = 0;  // the last a multiple of 8
  // Row i stands at positions[i], or at first_position + i without positions.
  const int32_t* positions = nullptr;
  int first_position = 0;
  const float2* cos_sin = nullptr;  // [position][head_dim / 2]
  void* q = nullptr;                // [rows, num_qo_heads, head_dim] of the weights' type
  // fp16; row i of kv head h stands at h * kv_head_stride + i * kv_row_stride elements, both
  // multiples of 4, as the addresses are of 8 bytes.
  uint16_t* k = nullptr;
  uint16_t* v = nullptr;
  int64_t kv_head_stride = 0, kv_row_stride = 0;
  // not_finite[i * not_finite_stride] is set to 1 when K or V of row i is not finite as fp16.
  int32_t* not_finite = nullptr;
  int not_finite_stride = 0;
};

// Adds the bias, turns Q and K (Rotary in layer_math.h), rounds.
cudaError_t LaunchRotaryRows(WeightType type, const RotaryRowsArgs& args, cudaStream_t stream);

// out = silu(gate) * up. gate_up: [rows][gate, up][dim], out: [rows][dim], both of `type`; dim a
// multiple of 8, at most 65535 rows. bias: [gate, up][dim], added before, or null.
cudaError_t LaunchSwiGluRows(WeightType type, const void* gate_up, const float* bias, int rows,
                             int dim, void* out, cudaStream_t stream);

// x += bias, rows of `dim`.
cudaError_t LaunchAddBiasRows(const float* bias, int rows, int dim, float* x, cudaStream_t stream);

// The largest of each row of logits [rows, vocab], ties to the lowest id, and its log probability,
// natural log. May start while the kernel before still runs.
cudaError_t LaunchGreedyRows(const float* logits, int rows, int vocab, int32_t* tokens,
                             float* logprobs, cudaStream_t stream);

// Uniform in [-scale, scale), a pure function of seed and index: weights for throughput work.
cudaError_t LaunchRandomWeights(WeightType type, uint64_t seed, float scale, int64_t count,
                                void* out, cudaStream_t stream);

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_CUDA_LAYER_MATH_KERNELS_H_
