#include "kernels/device/pinned_buffer.h"

#include <cstring>

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "kernels/device/cuda_status.h"
#include "proto/base/status_macros.h"

namespace pkv {

absl::StatusOr<PinnedBuffer> PinnedBuffer::Make(size_t size) {
  PinnedBuffer buffer;
  if (size == 0) return buffer;
  void* data = nullptr;
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaMallocHost(&data, size), absl::StrCat("pin ", size, " bytes")));
  std::memset(data, 0, size);
  buffer.data_ = static_cast<std::byte*>(data);
  buffer.size_ = size;
  return buffer;
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) cudaFreeHost(data_);
}

}  // namespace pkv
