#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"
#include "proto/transport/nccl/pair_calls.h"
#include "proto/transport/nccl/span_kernels.h"

namespace pkv {
namespace {

static_assert(sizeof(NcclUniqueId) == sizeof(ncclUniqueId));

absl::Status OfCuda(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message =
      absl::StrCat(what, ": ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
  switch (error) {
    case cudaErrorMemoryAllocation:
      return absl::ResourceExhaustedError(message);
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInitializationError:
      return absl::FailedPreconditionError(message);
    default:
      return absl::InternalError(message);
  }
}

// OK while in progress. Of an error in NCCL's network code only the other end's death is likely.
absl::Status OfNccl(ncclResult_t result, absl::string_view what) {
  if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", ncclGetErrorString(result));
  switch (result) {
    case ncclRemoteError:
    case ncclSystemError:
      return absl::UnavailableError(message);
    case ncclInvalidUsage:
      return absl::FailedPreconditionError(message);
    default:
      return absl::InternalError(message);
  }
}

// Makes a device current and puts the caller's back.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    if (cudaGetDevice(&before_) != cudaSuccess) before_ = device;
    status_ = before_ == device ? OfCuda(cudaSetDevice(device), "take the device")
                                : OfCuda(cudaSetDevice(device), "change to the device");
  }
  ~CurrentDevice() { static_cast<void>(cudaSetDevice(before_)); }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  const absl::Status& status() const { return status_; }

 private:
  int before_ = 0;
  absl::Status status_;
};

cudaStream_t StreamOf(void* stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t EventOf(void* event) { return static_cast<cudaEvent_t>(event); }
ncclComm_t CommOf(void* comm) { return static_cast<ncclComm_t>(comm); }

absl::StatusOr<bool> HasPassed(cudaError_t error, absl::string_view what) {
  if (error == cudaErrorNotReady) return false;
  PKV_RETURN_IF_ERROR(OfCuda(error, what));
  return true;
}

class CudaPairCalls : public PairCalls {
 public:
  CudaPairCalls(int device, const PairCallsOptions& options) : device_(device), options_(options) {}

  absl::StatusOr<NcclUniqueId> MakeUniqueId() override {
    const CurrentDevice current(device_);
    PKV_RETURN_IF_ERROR(current.status());
    ncclUniqueId made;
    PKV_RETURN_IF_ERROR(OfNccl(ncclGetUniqueId(&made), "make a unique id"));
    NcclUniqueId id;
    std::memcpy(id.bytes.data(), made.internal, sizeof(made.internal));
    return id;
  }

  absl::StatusOr<void*> BeginInit(const NcclUniqueId& id, int rank) override {
    const CurrentDevice current(device_);
    PKV_RETURN_IF_ERROR(current.status());
    ncclUniqueId unique_id;
    std::memcpy(unique_id.internal, id.bytes.data(), sizeof(unique_id.internal));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    if (options_.comm_ctas != 0) config.maxCTAs = options_.comm_ctas;
    ncclComm_t comm = nullptr;
    const ncclResult_t result = ncclCommInitRankConfig(&comm, 2, unique_id, rank, &config);
    if (comm == nullptr) {
      const absl::Status status = OfNccl(result, "start a communicator");
      return status.ok() ? absl::InternalError("NCCL started no communicator") : status;
    }
    // An error that comes with a communicator shows in its state.
    return comm;
  }

  absl::StatusOr<bool> IsReady(void* comm) override {
    ncclResult_t state = ncclSuccess;
    PKV_RETURN_IF_ERROR(
        OfNccl(ncclCommGetAsyncError(CommOf(comm), &state), "ask for the communicator's state"));
    if (state == ncclInProgress) return false;
    if (state != ncclSuccess) return OfNccl(state, ncclGetLastError(CommOf(comm)));
    return true;
  }

  absl::Status Begin(void* comm, std::span<const PairOp> ops, void* stream) override {
    const CurrentDevice current(device_);
    PKV_RETURN_IF_ERROR(current.status());
    int rank = 0;
    PKV_RETURN_IF_ERROR(OfNccl(ncclCommUserRank(CommOf(comm), &rank), "ask for the rank"));
    const int peer = 1 - rank;
    PKV_RETURN_IF_ERROR(OfNccl(ncclGroupStart(), "start a group"));
    absl::Status status;
    for (const PairOp& op : ops) {
      const ncclResult_t result =
          op.is_send ? ncclSend(op.data, op.bytes, ncclUint8, peer, CommOf(comm), StreamOf(stream))
                     : ncclRecv(op.data, op.bytes, ncclUint8, peer, CommOf(comm), StreamOf(stream));
      status.Update(OfNccl(result, op.is_send ? "send" : "receive"));
    }
    status.Update(OfNccl(ncclGroupEnd(), "end a group"));
    return status;
  }

  absl::Status BeginFinalize(void* comm) override {
    const CurrentDevice current(device_);
    PKV_RETURN_IF_ERROR(current.status());
    return OfNccl(ncclCommFinalize(CommOf(comm)), "finalize the communicator");
  }

  // Nothing is left to do about a failure to free.
  void Destroy(void* comm) override {
    const CurrentDevice current(device_);
    static_cast<void>(ncclCommDestroy(CommOf(comm)));
  }
  void Abort(void* comm) override {
    const CurrentDevice current(device_);
    static_cast<void>(ncclCommAbort(CommOf(comm)));
  }

  absl::StatusOr<void*> MakeStream(int rank) override {
    const CurrentDevice current(device_);
    PKV_RETURN_IF_ERROR(current.status());
    // Greater is a smaller number; those of a model are the least.
    int least = 0, greatest = 0;
    PKV_RETURN_IF_ERROR(
        OfCuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "ask for priorities"));
    cudaStream_t stream = nullptr;
    PKV_RETURN_IF_ERROR(OfCuda(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking,
                                                            std::min(greatest + rank, least)),
                               "make a stream"));
    return stream;
  }
  void DestroyStream(void* stream) override {
    static_cast<void>(cudaStreamDestroy(StreamOf(stream)));
  }
  absl::StatusOr<bool> StreamIsIdle(void* stream) override {
    return HasPassed(cudaStreamQuery(StreamOf(stream)), "work of the stream");
  }

  absl::StatusOr<void*> MakeEvent() override {
    const CurrentDevice current(device_);
    PKV_RETURN_IF_ERROR(current.status());
    cudaEvent_t event = nullptr;
    PKV_RETURN_IF_ERROR(
        OfCuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "make an event"));
    return event;
  }
  void DestroyEvent(void* event) override { static_cast<void>(cudaEventDestroy(EventOf(event))); }
  absl::Status RecordEvent(void* event, void* stream) override {
    return OfCuda(cudaEventRecord(EventOf(event), StreamOf(stream)), "record an event");
  }
  absl::Status StreamWaitEvent(void* stream, void* event) override {
    return OfCuda(cudaStreamWaitEvent(StreamOf(stream), EventOf(event), 0), "wait for an event");
  }
  absl::StatusOr<bool> EventHasPassed(void* event) override {
    return HasPassed(cudaEventQuery(EventOf(event)), "work before an event");
  }

  absl::StatusOr<std::byte*> AllocateDevice(uint64_t bytes) override {
    const CurrentDevice current(device_);
    PKV_RETURN_IF_ERROR(current.status());
    void* data = nullptr;
    PKV_RETURN_IF_ERROR(
        OfCuda(cudaMalloc(&data, bytes), absl::StrCat("allocate ", bytes, " bytes")));
    return static_cast<std::byte*>(data);
  }
  void FreeDevice(std::byte* data) override { static_cast<void>(cudaFree(data)); }
  absl::Status RegisterHost(std::byte* data, uint64_t bytes) override {
    const CurrentDevice current(device_);
    PKV_RETURN_IF_ERROR(current.status());
    PKV_RETURN_IF_ERROR(
        OfCuda(cudaHostRegister(data, bytes, cudaHostRegisterMapped | cudaHostRegisterPortable),
               absl::StrCat("register ", bytes, " bytes of host memory")));
    // Spans name addresses of the host.
    void* mapped = nullptr;
    PKV_RETURN_IF_ERROR(OfCuda(cudaHostGetDevicePointer(&mapped, data, 0), "map host memory"));
    if (mapped == data) return absl::OkStatus();
    UnregisterHost(data);
    return absl::FailedPreconditionError("the device has no unified addresses");
  }
  void UnregisterHost(std::byte* data) override { static_cast<void>(cudaHostUnregister(data)); }
  absl::StatusOr<std::byte*> AllocateHost(uint64_t bytes) override {
    const CurrentDevice current(device_);
    PKV_RETURN_IF_ERROR(current.status());
    void* data = nullptr;
    PKV_RETURN_IF_ERROR(
        OfCuda(cudaMallocHost(&data, bytes), absl::StrCat("pin ", bytes, " bytes")));
    return static_cast<std::byte*>(data);
  }
  void FreeHost(std::byte* data) override { static_cast<void>(cudaFreeHost(data)); }

  absl::Status CopyAsync(std::byte* to, const std::byte* from, uint64_t bytes,
                         void* stream) override {
    return OfCuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, StreamOf(stream)),
                  absl::StrCat("copy ", bytes, " bytes"));
  }
  absl::Status CopyItems(const CopyItem* items, uint32_t num_items, void* stream) override {
    const CurrentDevice current(device_);
    PKV_RETURN_IF_ERROR(current.status());
    return OfCuda(LaunchCopyItems(items, num_items, options_.copy_ctas, stream), "copy spans");
  }
  absl::Status DigestItems(const DigestItem* items, uint32_t num_items, uint32_t* digests,
                           void* stream) override {
    const CurrentDevice current(device_);
    PKV_RETURN_IF_ERROR(current.status());
    return OfCuda(LaunchDigestItems(items, num_items, digests, options_.digest_ctas, stream),
                  "take digests");
  }
  absl::Status CheckItems(const CheckItem* items, uint32_t num_items, const FrameRules* rules,
                          uint32_t* flags, void* stream) override {
    const CurrentDevice current(device_);
    PKV_RETURN_IF_ERROR(current.status());
    return OfCuda(LaunchCheckItems(items, num_items, rules, flags, options_.digest_ctas, stream),
                  "check numbers");
  }

 private:
  const int device_;
  const PairCallsOptions options_;
};

absl::Status CheckDevice(int device) {
  int num_devices = 0;
  PKV_RETURN_IF_ERROR(OfCuda(cudaGetDeviceCount(&num_devices), "count devices"));
  if (device >= 0 && device < num_devices) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("device ", device, " of ", num_devices, " devices"));
}

}  // namespace

absl::StatusOr<std::shared_ptr<PairCalls>> MakePairCalls(int device,
                                                         const PairCallsOptions& options) {
  PKV_RETURN_IF_ERROR(CheckDevice(device));
  const CurrentDevice current(device);
  PKV_RETURN_IF_ERROR(current.status());
  PKV_RETURN_IF_ERROR(OfCuda(LoadSpanKernels(), "load kernels"));
  return std::make_shared<CudaPairCalls>(device, options);
}

absl::StatusOr<std::array<std::byte, 16>> DeviceUuid(int device) {
  PKV_RETURN_IF_ERROR(CheckDevice(device));
  cudaDeviceProp properties;
  PKV_RETURN_IF_ERROR(
      OfCuda(cudaGetDeviceProperties(&properties, device), "ask for the device's properties"));
  std::array<std::byte, 16> uuid;
  static_assert(sizeof(properties.uuid) == sizeof(uuid));
  std::memcpy(uuid.data(), &properties.uuid, sizeof(uuid));
  return uuid;
}

int NcclVersion() {
  int version = 0;
  return ncclGetVersion(&version) == ncclSuccess ? version : 0;
}

}  // namespace pkv
