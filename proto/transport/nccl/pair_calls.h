#ifndef PKV_PROTO_TRANSPORT_NCCL_PAIR_CALLS_H_
#define PKV_PROTO_TRANSPORT_NCCL_PAIR_CALLS_H_

// What NcclPair needs of NCCL and of CUDA, one function a call, so that tests can stand in for
// both. Decides nothing: time bounds, order and what an error leads to are NcclPair's.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/transport/nccl/copy_item.h"
#include "proto/transport/nccl/frame_rules.h"
#include "proto/transport/nccl/span_digest.h"

namespace pkv {

// Names one communicator; made by one end, brought to the other over the control connection.
struct NcclUniqueId {
  std::array<std::byte, 128> bytes = {};
};

// One operation with the other end.
struct PairOp {
  bool is_send = false;
  std::byte* data = nullptr;  // device memory; a send only reads it
  uint64_t bytes = 0;
};

// Of one GPU. Streams, events and communicators are opaque. Every call returns without waiting for
// the GPU or the other end, Abort, Destroy and the functions that free excepted. Statuses:
//   Unavailable         the other end is gone, as far as NCCL knows
//   FailedPrecondition  no such device; two ranks on one GPU
//   ResourceExhausted   out of device or pinned memory
//   Internal            CUDA or NCCL failed
// Thread-safe.
class PairCalls {
 public:
  virtual ~PairCalls() = default;

  virtual absl::StatusOr<NcclUniqueId> MakeUniqueId() = 0;
  // Starts joining a communicator of two ranks, and returns it.
  virtual absl::StatusOr<void*> BeginInit(const NcclUniqueId& id, int rank) = 0;
  // Whether what was begun has been handed to the GPU or the other end. Begin* may be called only
  // then; RecordEvent after a Begin too.
  virtual absl::StatusOr<bool> IsReady(void* comm) = 0;
  // All of `ops` at once, on `stream`.
  virtual absl::Status Begin(void* comm, std::span<const PairOp> ops, void* stream) = 0;
  virtual absl::Status BeginFinalize(void* comm) = 0;
  // After a finalize that got ready. May wait for the other end.
  virtual void Destroy(void* comm) = 0;
  // Makes kernels of `comm` end, then frees it. May wait for the other end. From any thread.
  virtual void Abort(void* comm) = 0;

  // `rank` 0: its kernels go before all others, 1: before those of rank 2, and so on.
  virtual absl::StatusOr<void*> MakeStream(int rank) = 0;
  virtual void DestroyStream(void* stream) = 0;
  virtual absl::StatusOr<bool> StreamIsIdle(void* stream) = 0;
  virtual absl::StatusOr<void*> MakeEvent() = 0;
  virtual void DestroyEvent(void* event) = 0;
  virtual absl::Status RecordEvent(void* event, void* stream) = 0;
  virtual absl::Status StreamWaitEvent(void* stream, void* event) = 0;
  virtual absl::StatusOr<bool> EventHasPassed(void* event) = 0;

  // Aligned to 256 bytes.
  virtual absl::StatusOr<std::byte*> AllocateDevice(uint64_t bytes) = 0;
  virtual void FreeDevice(std::byte* data) = 0;
  // Lets the GPU read and write host memory where it lies. Pins it: takes a second for some GiB.
  virtual absl::Status RegisterHost(std::byte* data, uint64_t bytes) = 0;
  virtual void UnregisterHost(std::byte* data) = 0;
  // Pinned.
  virtual absl::StatusOr<std::byte*> AllocateHost(uint64_t bytes) = 0;
  virtual void FreeHost(std::byte* data) = 0;

  // Between device and pinned memory.
  virtual absl::Status CopyAsync(std::byte* to, const std::byte* from, uint64_t bytes,
                                 void* stream) = 0;
  // Kernels of span_kernels.h; what they read lies in device memory, or, copied items, in host
  // memory that is registered.
  virtual absl::Status CopyItems(const CopyItem* items, uint32_t num_items, void* stream) = 0;
  virtual absl::Status DigestItems(const DigestItem* items, uint32_t num_items, uint32_t* digests,
                                   void* stream) = 0;
  virtual absl::Status CheckItems(const CheckItem* items, uint32_t num_items,
                                  const FrameRules* rules, uint32_t* flags, void* stream) = 0;
};

// The most CTAs of each kind of kernel, for a GPU that has a model to run meanwhile; 0: what NCCL
// and the device take. Fewer copies and digests at a time cost bandwidth (README.md).
struct PairCallsOptions {
  int comm_ctas = 0;
  int copy_ctas = 0;
  int digest_ctas = 0;
};

// Of CUDA device `device`, which stays current in no calling thread.
//   Unimplemented       built without NCCL or CUDA
//   FailedPrecondition  no such device
absl::StatusOr<std::shared_ptr<PairCalls>> MakePairCalls(int device,
                                                         const PairCallsOptions& options = {});

// The 16 bytes of the device's UUID, by which an end sees that both are on one GPU, which NCCL
// refuses. Statuses as MakePairCalls.
absl::StatusOr<std::array<std::byte, 16>> DeviceUuid(int device);

// NCCL's version code, 22809 for 2.28.9; 0 without NCCL.
int NcclVersion();

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_NCCL_PAIR_CALLS_H_
