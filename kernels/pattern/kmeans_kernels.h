#ifndef PKV_KERNELS_PATTERN_KMEANS_KERNELS_H_
#define PKV_KERNELS_PATTERN_KMEANS_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

namespace pkv {

// Mines the patterns of one layer on the device (kernels/README.md, "Mine"). All pointers are on
// the device.
struct KMeansKernelArgs {
  // Prompt without its sinks, finite, [kv_head][token][head_dim] fp16; heads are head_stride
  // elements apart. Rows are aligned to 16 bytes.
  const uint16_t* k = nullptr;
  const uint16_t* v = nullptr;
  int num_kv_heads = 0;
  int num_tokens = 0;
  int head_dim = 0;  // 64 or 128
  int64_t head_stride = 0;

  int num_patterns_k = 0;  // 0..255; min(this, num_tokens) are mined
  int num_patterns_v = 0;
  int iterations = 0;    // Lloyd iterations at most, from 1 up
  double tolerance = 0;  // CodecParams::kmeans_tolerance

  // K [num_kv_heads][bank_capacity][head_dim] fp16, then V. Patterns are written from id 0 on,
  // rotated as RotateFloat16Rows() does it (rotation.h) if the bank is of rotated rows; what stands
  // behind them is not touched.
  uint16_t* bank = nullptr;
  int bank_capacity = 0;
  bool is_bank_rotated = false;

  // KMeansWorkspaceBytes(), aligned to 16, content of no matter. Not in use by another launch
  // until the stream has passed this one.
  std::byte* workspace = nullptr;
};

// Depends on the shape, the numbers of patterns and the iterations. It keeps the patterns of every
// iteration, since heads stop together and do not wait for each other: 4 MB for 8 kv heads, 32
// patterns, head_dim 128, 30 iterations.
int64_t KMeansWorkspaceBytes(const KMeansKernelArgs& args);

// Enqueues mining of K and V of all heads and returns; nothing waits for the host. Equal input
// gives equal bits. May be captured into a graph. Without tokens or patterns nothing is enqueued.
// REQUIRES: head_dim is 64 or 128, counts are within their ranges, bank_capacity holds them.
cudaError_t LaunchMinePatterns(const KMeansKernelArgs& args, cudaStream_t stream);

}  // namespace pkv

#endif  // PKV_KERNELS_PATTERN_KMEANS_KERNELS_H_
