#include "worker/batch/upload_ring.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <cuda_runtime_api.h>

#include "kernels/device/cuda_status.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace pkv {

absl::StatusOr<UploadRing> UploadRing::Make(size_t half_bytes, void* stream) {
  UploadRing ring;
  ring.stream_ = stream;
  ring.half_bytes_ = half_bytes;
  PKV_ASSIGN_OR_RETURN(ring.memory_, PinnedBuffer::Make(2 * half_bytes));
  for (void*& event : ring.passed_) {
    cudaEvent_t made = nullptr;
    PKV_RETURN_IF_ERROR(
        CudaStatus(cudaEventCreateWithFlags(&made, cudaEventDisableTiming), "make event"));
    event = made;
  }
  return ring;
}

UploadRing::UploadRing(UploadRing&& other) noexcept
    : stream_(other.stream_),
      half_bytes_(other.half_bytes_),
      memory_(std::move(other.memory_)),
      half_(other.half_),
      used_(other.used_),
      passed_(std::exchange(other.passed_, {})) {}

UploadRing::~UploadRing() {
  // The pinned memory must outlive the copies.
  if (memory_.size() > 0) cudaStreamSynchronize(static_cast<cudaStream_t>(stream_));
  for (void* event : passed_) {
    if (event != nullptr) cudaEventDestroy(static_cast<cudaEvent_t>(event));
  }
}

absl::Status UploadRing::Reserve(size_t bytes, std::byte** at) {
  PKV_CHECK(bytes <= half_bytes_, bytes, " of ", half_bytes_);
  if (used_ + bytes > half_bytes_) {
    PKV_RETURN_IF_ERROR(CudaStatus(cudaEventRecord(static_cast<cudaEvent_t>(passed_[half_]),
                                                   static_cast<cudaStream_t>(stream_)),
                                   "record event"));
    half_ = 1 - half_;
    used_ = 0;
    // An event that was never recorded has passed.
    PKV_RETURN_IF_ERROR(
        CudaStatus(cudaEventSynchronize(static_cast<cudaEvent_t>(passed_[half_])), "upload"));
  }
  *at = memory_.data() + half_ * half_bytes_ + used_;
  used_ += bytes;
  return absl::OkStatus();
}

absl::Status UploadRing::Copy(const Rows& rows) {
  if (rows.row_bytes == 0) return absl::OkStatus();
  const size_t most = std::max<size_t>(half_bytes_ / rows.row_bytes, 1);
  for (size_t first = 0; first < rows.count; first += most) {
    const size_t count = std::min(most, rows.count - first);
    std::byte* staged = nullptr;
    PKV_RETURN_IF_ERROR(Reserve(count * rows.row_bytes, &staged));
    for (size_t i = 0; i < count; ++i) {
      std::memcpy(staged + i * rows.row_bytes, rows.from + (first + i) * rows.from_pitch,
                  rows.row_bytes);
    }
    PKV_RETURN_IF_ERROR(
        CudaStatus(cudaMemcpy2DAsync(static_cast<std::byte*>(rows.to) + first * rows.to_pitch,
                                     rows.to_pitch, staged, rows.row_bytes, rows.row_bytes, count,
                                     cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream_)),
                   "upload"));
  }
  return absl::OkStatus();
}

}  // namespace pkv
