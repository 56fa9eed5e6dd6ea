#ifndef PKV_WORKER_ENGINE_GEMM_H_
#define PKV_WORKER_ENGINE_GEMM_H_

#include <cstdint>

#include "absl/status/status.h"

namespace pkv {

class ThreadPool;

// c = alpha * a * op(b) + beta * c, fp32, row-major. Does not own.
struct GemmArgs {
  int m = 0, n = 0, k = 0;
  const float* a = nullptr;  // [m, k], rows a_stride elements apart
  const float* b = nullptr;  // [k, n]; [n, k] when transpose_b. Rows b_stride elements apart
  float* c = nullptr;        // [m, n], rows c_stride elements apart; not read when beta is 0
  int64_t a_stride = 0, b_stride = 0, c_stride = 0;
  bool transpose_b = false;
  float alpha = 1, beta = 0;
};

// By oneDNN: measured on the project's CPUs, 366 GFLOP/s at 512 x 768 x 384 where OpenBLAS reached
// a half to a tenth of it. Nothing happens when m or n is 0.
//
// Split over `pool` (null: none) by the shape alone, so that equal arguments give equal bits with
// any pool. oneDNN's own threads stay out: beside other work on the same cores their spinning
// barriers made a decode step of 2.5 ms take 200 ms.
//
// Thread-safe. Internal: the library refused.
absl::Status Gemm(const GemmArgs& args, ThreadPool* pool);

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_GEMM_H_
