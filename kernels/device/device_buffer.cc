#include "kernels/device/device_buffer.h"

#include "absl/strings/str_cat.h"
#include "kernels/device/cuda_status.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

cudaStream_t AsStream(void* stream) { return static_cast<cudaStream_t>(stream); }

}  // namespace

absl::StatusOr<DeviceBuffer> DeviceBuffer::Make(size_t size, void* stream) {
  DeviceBuffer buffer;
  buffer.stream_ = stream;
  if (size == 0) return buffer;
  void* data = nullptr;
  PKV_RETURN_IF_ERROR(CudaStatus(cudaMallocAsync(&data, size, AsStream(stream)),
                                 absl::StrCat("allocate ", size, " bytes")));
  buffer.data_ = static_cast<std::byte*>(data);
  buffer.size_ = size;
  return buffer;
}

absl::StatusOr<DeviceBuffer> DeviceBuffer::CopyOf(std::span<const std::byte> bytes, void* stream) {
  PKV_ASSIGN_OR_RETURN(DeviceBuffer buffer, Make(bytes.size(), stream));
  if (bytes.empty()) return buffer;
  PKV_RETURN_IF_ERROR(CudaStatus(cudaMemcpyAsync(buffer.data_, bytes.data(), bytes.size(),
                                                 cudaMemcpyHostToDevice, AsStream(stream)),
                                 absl::StrCat("copy ", bytes.size(), " bytes to the device")));
  return buffer;
}

DeviceBuffer::~DeviceBuffer() {
  // Nothing to do about a failure here; whoever synchronizes sees it.
  if (data_ != nullptr) static_cast<void>(cudaFreeAsync(data_, AsStream(stream_)));
}

absl::Status DeviceBuffer::CopyToHost(std::span<std::byte> out) const {
  PKV_CHECK(out.size() <= size_, "copying ", out.size(), " of ", size_, " bytes");
  if (!out.empty()) {
    PKV_RETURN_IF_ERROR(CudaStatus(
        cudaMemcpyAsync(out.data(), data_, out.size(), cudaMemcpyDeviceToHost, AsStream(stream_)),
        absl::StrCat("copy ", out.size(), " bytes to the host")));
  }
  return CudaStatus(cudaStreamSynchronize(AsStream(stream_)), "synchronize stream");
}

}  // namespace pkv
