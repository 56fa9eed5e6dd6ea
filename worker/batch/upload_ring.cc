#include "worker/batch/upload_ring.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <cuda_runtime_api.h>

#include "kernels/device/cuda_status.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace pkv {

absl::StatusOr<UploadRing> UploadRing::Make(size_t half_bytes, ThreadPool* pool, void* stream) {
  UploadRing ring;
  ring.pool_ = pool;
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
    : pool_(other.pool_),
      stream_(other.stream_),
      half_bytes_(other.half_bytes_),
      memory_(std::move(other.memory_)),
      half_(other.half_),
      used_(other.used_),
      pending_(std::move(other.pending_)),
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
    PKV_RETURN_IF_ERROR(Flush());
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
  if (rows.from_device) {
    return CudaStatus(
        cudaMemcpy2DAsync(rows.to, rows.to_pitch, rows.from, rows.from_pitch, rows.row_bytes,
                          rows.count, cudaMemcpyDeviceToDevice, static_cast<cudaStream_t>(stream_)),
        "copy frames");
  }
  const size_t most = std::max<size_t>(half_bytes_ / rows.row_bytes, 1);
  for (size_t first = 0; first < rows.count; first += most) {
    Rows part = rows;
    part.count = std::min(most, rows.count - first);
    part.from += first * rows.from_pitch;
    part.to = static_cast<std::byte*>(rows.to) + first * rows.to_pitch;
    std::byte* at = nullptr;
    PKV_RETURN_IF_ERROR(Reserve(part.count * part.row_bytes, &at));
    pending_.push_back({at, part});
  }
  return absl::OkStatus();
}

absl::Status UploadRing::Flush() {
  ParallelFor(pool_, static_cast<int>(pending_.size()), [&](int index) {
    const auto& [at, rows] = pending_[index];
    for (size_t i = 0; i < rows.count; ++i) {
      std::memcpy(at + i * rows.row_bytes, rows.from + i * rows.from_pitch, rows.row_bytes);
    }
  });
  absl::Status status;
  for (size_t i = 0; status.ok() && i < pending_.size();) {
    auto [at, rows] = pending_[i++];
    // Neighbours here and there, as pages of a fresh pool are, go as one.
    while (rows.count == 1 && i < pending_.size() && pending_[i].rows.count == 1 &&
           pending_[i].at == at + rows.row_bytes &&
           pending_[i].rows.to == static_cast<std::byte*>(rows.to) + rows.row_bytes) {
      rows.row_bytes += pending_[i++].rows.row_bytes;
    }
    status =
        CudaStatus(cudaMemcpy2DAsync(rows.to, std::max(rows.to_pitch, rows.row_bytes), at,
                                     rows.row_bytes, rows.row_bytes, rows.count,
                                     cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream_)),
                   "upload");
  }
  pending_.clear();
  return status;
}

}  // namespace pkv
