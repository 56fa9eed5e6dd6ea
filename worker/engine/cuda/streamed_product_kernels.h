#ifndef PKV_WORKER_ENGINE_CUDA_STREAMED_PRODUCT_KERNELS_H_
#define PKV_WORKER_ENGINE_CUDA_STREAMED_PRODUCT_KERNELS_H_

// Products of up to 16 rows with the weights of a layer, and what a layer does to their results.

#include <cstdint>

#include <cuda_runtime_api.h>

#include "worker/engine/cuda/layer_math_kernels.h"
#include "worker/engine/cuda/streamed_product_plan.h"

namespace pkv {

// What becomes of x w^T.
enum class ProductEnd {
  kParts,   // written as it is
  kSwiGlu,  // rows of w: gate, then up. silu(gate) * up is written
  kRotary,  // rows of w: heads of Q, K, V. As LaunchRotaryRows() does to them
};

// All pointers are on the device.
struct StreamedProductArgs {
  StreamedProductShape shape;
  StreamedProductPlan plan;  // of the shape
  ProductEnd end = ProductEnd::kParts;
  const void* weight = nullptr;  // [n, k] of the type, at a multiple of 16 bytes
  const void* x = nullptr;       // [rows, k] of the type, likewise
  int rows = 0;
  // kParts: [num_parts, rows, n] fp32, whose sum over parts is the product.
  // kSwiGlu: [rows, n / 2] of the type.
  void* out = nullptr;
  const float* bias = nullptr;  // kSwiGlu: [n], or null
  RotaryRowsArgs rotary;        // kRotary: all but qkv and rows
  // [num_parts], zeros before the launch and after it. Launches of one stream may share them.
  uint32_t* tickets = nullptr;
};

// x w^T, fp32 sums. A row's bits depend on it, the weights and the plan alone: on no other row, nor
// on the run.
//
// One CTA an SM: four warps copy tiles of the weights into a ring in shared memory, eight multiply
// (mma m16n8k16, rows of the weights as A), each a share of the columns; their sums are added in
// the order of the warps. Moves n k weights once, and rows k / num_parts of x into each CTA.
//
// Launched so that it may start while the kernel before still runs (weight_type.cuh): it then fills
// its ring, and touches nothing but weights before that kernel is done. They are written before the
// chain of such kernels begins.
//
// REQUIRES: 0 <= rows <= kStreamedRowsMax, the type's plan from PlanStreamedProduct().
cudaError_t LaunchStreamedProduct(WeightType type, const StreamedProductArgs& args,
                                  cudaStream_t stream);

// What the current device has for a CTA of these kernels.
struct ProductDevice {
  int num_sms = 0;
  int shared_bytes_max = 0;
};
// Also lets the kernels use that much.
cudaError_t PrepareStreamedProducts(ProductDevice* device);

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_CUDA_STREAMED_PRODUCT_KERNELS_H_
