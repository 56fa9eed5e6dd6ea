#include "worker/engine/cuda/cublas_library.h"

#include <dlfcn.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

template <typename Function>
absl::Status Find(void* library, const char* name, Function& out) {
  out = reinterpret_cast<Function>(dlsym(library, name));
  if (out != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("cuBLAS has no function ", name));
}

absl::StatusOr<CublasLibrary> Open() {
  const std::string name = absl::StrCat("libcublas.so.", CUBLAS_VER_MAJOR);
  // Never closed: handles live as long as the process may use them.
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* error = dlerror();
    return absl::FailedPreconditionError(absl::StrCat("cuBLAS is not found in the loader's path: ",
                                                      error == nullptr ? name : error));
  }
  CublasLibrary functions;
  PKV_RETURN_IF_ERROR(Find(library, "cublasCreate_v2", functions.create));
  PKV_RETURN_IF_ERROR(Find(library, "cublasDestroy_v2", functions.destroy));
  PKV_RETURN_IF_ERROR(Find(library, "cublasSetStream_v2", functions.set_stream));
  PKV_RETURN_IF_ERROR(Find(library, "cublasSetWorkspace_v2", functions.set_workspace));
  PKV_RETURN_IF_ERROR(Find(library, "cublasSetSmCountTarget", functions.set_sm_count_target));
  PKV_RETURN_IF_ERROR(Find(library, "cublasGemmEx", functions.gemm_ex));
  PKV_RETURN_IF_ERROR(Find(library, "cublasGetStatusString", functions.status_string));
  return functions;
}

}  // namespace

absl::StatusOr<const CublasLibrary*> CublasLibrary::Load() {
  static const absl::StatusOr<CublasLibrary>* const library =
      new absl::StatusOr<CublasLibrary>(Open());
  PKV_RETURN_IF_ERROR(library->status());
  return &**library;
}

}  // namespace pkv
