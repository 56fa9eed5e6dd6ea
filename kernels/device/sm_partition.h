#ifndef PKV_KERNELS_DEVICE_SM_PARTITION_H_
#define PKV_KERNELS_DEVICE_SM_PARTITION_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device/stream.h"

namespace pkv {

// A few multiprocessors (SMs) of the current device, as a CUDA green context. What its streams are
// given runs on no others, and cannot stand in the way of kernels there. Other streams may use them
// too, and other partitions may be of the same ones. Kernels with clusters of thread blocks cannot
// be launched on them.
//
// Owns the context; must outlive its streams. Movable. Thread-safe but for moving.
class SmPartition {
 public:
  // num_sms: even, below what the device has.
  //   InvalidArgument     it is not
  //   FailedPrecondition  no CUDA device
  //   ResourceExhausted   out of device memory
  //   Unimplemented       the driver has no green contexts, or divides this device no finer
  static absl::StatusOr<SmPartition> Make(int num_sms);
  SmPartition(SmPartition&& other) noexcept
      : context_(std::exchange(other.context_, nullptr)), num_sms_(other.num_sms_) {}
  SmPartition& operator=(SmPartition&& other) noexcept {
    std::swap(context_, other.context_);
    std::swap(num_sms_, other.num_sms_);
    return *this;
  }
  ~SmPartition();

  int num_sms() const { return num_sms_; }
  // Of normal priority. Internal: the driver failed.
  absl::StatusOr<Stream> MakeStream() const;

 private:
  SmPartition(void* context, int num_sms) : context_(context), num_sms_(num_sms) {}
  void* context_;  // a CUgreenCtx
  int num_sms_;
};

}  // namespace pkv

#endif  // PKV_KERNELS_DEVICE_SM_PARTITION_H_
