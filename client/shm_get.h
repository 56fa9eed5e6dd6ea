#ifndef PKV_CLIENT_SHM_GET_H_
#define PKV_CLIENT_SHM_GET_H_

#include <atomic>
#include <memory>
#include <span>
#include <vector>

#include "client/client_core.h"
#include "client/object_check.h"
#include "client/shm_link.h"
#include "proto/base/sync.h"

namespace pkv {

// GetStream that reads in place: one question to the server pins all objects, then every layer is
// verified where it lies. With Transport::kAuto it becomes a get over gRPC when that is not
// possible, or no longer, as long as the caller has seen no frame.
class ShmGet final : public GetStream {
 public:
  // shared_ptr: a stream may outlive the client that started it.
  ShmGet(std::shared_ptr<ClientCore> core, std::vector<ObjectKey> keys, absl::Time deadline,
         CallRecord record);
  ~ShmGet() override;

  absl::Status WaitForManifest() override;
  absl::Status WaitForLayer(int layer) override;
  absl::Status WaitForAll() override;
  int num_objects() const override { return static_cast<int>(keys_.size()); }
  const ObjectHeader& header(int object_index) const override;
  std::span<const std::byte> frame(int object_index, int layer) const override;
  AlignedBuffer TakeObject(int object_index) override;
  absl::Status CheckHeld() override;
  uint64_t received_bytes() const override;
  void Cancel() override;

 private:
  struct Object {
    std::span<const std::byte> bytes;  // in the arena
    ObjectHead head;
  };

  // Pins, or goes over to gRPC. OK: either is done, see inner_.
  absl::Status Begin();
  absl::Status TryToPin();
  absl::Status ReadHeads(const ShmLink::Pin& pin);
  absl::Status ReadHead(const v1::ShmExtent& extent, int object_index, Object& object) const;
  // Keeps the headers that the first attempt brings.
  //   Aborted  a later attempt, or gRPC, brings others
  absl::Status KeepHeaders();
  // After a failed attempt: OK when another, or gRPC, is to be tried.
  absl::Status RecoverFrom(const absl::Status& status);
  void GoOverToGrpc();
  absl::Status VerifyLayer(int layer);
  absl::Status VerifyTables();
  absl::Status Fail(const absl::Status& status);
  void LetGo();

  // Constant after construction.
  const std::shared_ptr<ClientCore> core_;
  const std::vector<ObjectKey> keys_;
  const absl::Time deadline_;

  // Touched by the owner's thread alone.
  Backoff backoff_;
  int num_attempts_ = 0;
  absl::Status failure_;
  std::unique_ptr<ShmLink::Pin> pin_;
  std::vector<Object> objects_;
  std::vector<ObjectHeader> headers_;  // constant once there
  int num_layers_ = 0;
  uint64_t payload_bytes_ = 0;
  std::vector<bool> verified_layers_;
  bool verified_tables_ = false;
  bool has_shown_frames_ = false;
  bool has_inner_headers_ = false;
  CallRecord record_;  // moved from once gRPC has gone on with the call

  std::atomic<bool> cancelled_{false};

  mutable Mutex mu_;
  // Set by the owner's thread, which alone reads them without the lock.
  std::shared_ptr<ShmLink> link_;
  std::unique_ptr<GetStream> inner_;  // once it has gone over to gRPC
};

}  // namespace pkv

#endif  // PKV_CLIENT_SHM_GET_H_
