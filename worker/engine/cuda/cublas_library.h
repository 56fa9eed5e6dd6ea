#ifndef PKV_WORKER_ENGINE_CUDA_CUBLAS_LIBRARY_H_
#define PKV_WORKER_ENGINE_CUDA_CUBLAS_LIBRARY_H_

#include <cublas_v2.h>

#include "absl/status/statusor.h"

namespace pkv {

// The functions of cuBLAS that are used, from the library of this build's major version, which is
// loaded when first asked for.
//
// Not linked: a worker on a CPU would load 700 MB that it does not use, and linked libraries'
// thread-local data (110 KB of cuBLASLt's) stands on every thread's stack. The server of /metrics
// makes threads with 100 KB of stack, which then fails.
struct CublasLibrary {
  decltype(&cublasCreate_v2) create = nullptr;
  decltype(&cublasDestroy_v2) destroy = nullptr;
  decltype(&cublasSetStream_v2) set_stream = nullptr;
  decltype(&cublasSetWorkspace_v2) set_workspace = nullptr;
  decltype(&cublasSetSmCountTarget) set_sm_count_target = nullptr;
  // Spelled out: the header overloads cublasGemmEx.
  cublasStatus_t (*gemm_ex)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n,
                            int k, const void* alpha, const void* a, cudaDataType, int lda,
                            const void* b, cudaDataType, int ldb, const void* beta, void* c,
                            cudaDataType, int ldc, cublasComputeType_t, cublasGemmAlgo_t) = nullptr;
  decltype(&cublasGetStatusString) status_string = nullptr;

  // FailedPrecondition: the library or a function of it is not found; says where it was looked for.
  // Thread-safe.
  static absl::StatusOr<const CublasLibrary*> Load();
};

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_CUDA_CUBLAS_LIBRARY_H_
