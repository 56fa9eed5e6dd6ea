#ifndef PKV_CLIENT_GET_CALL_H_
#define PKV_CLIENT_GET_CALL_H_

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client/client_core.h"
#include "client/get_assembly.h"
#include "proto/base/sync.h"

namespace pkv {

// GetStream over a Connection. Messages are copied into place as they arrive, in the transport's
// threads; verification, retries and time limits are the work of who waits.
class GetCall final : public GetStream, private StreamReceiver {
 public:
  // `deadline` is on the core's clock; the call is counted in `record`; `numbering`: of the keys,
  // for messages. Layers below `first_layer` are not fetched: neither they nor all layers can be
  // waited for then, and no object can be taken. `heads`: as of GetAssembly; other objects are
  // Aborted. shared_ptr: a stream may outlive the client that started it.
  GetCall(std::shared_ptr<ClientCore> core, std::vector<ObjectKey> keys, absl::Time deadline,
          CallRecord record, ObjectNumbering numbering = {}, int first_layer = 0,
          std::vector<std::string> heads = {});
  ~GetCall() override;

  absl::Status WaitForManifest() override;
  absl::Status WaitForLayer(int layer) override;
  absl::Status WaitForAll() override;
  int num_objects() const override;
  const ObjectHeader& header(int object_index) const override;
  std::span<const std::byte> frame(int object_index, int layer) const override;
  AlignedBuffer TakeObject(int object_index) override;
  absl::Status CheckHeld() override { return absl::OkStatus(); }
  uint64_t received_bytes() const override;
  void Cancel() override;

 private:
  enum class Step { kReady, kFailed, kOpen };

  absl::Status OnMessage(grpc::ByteBuffer& message) override;
  void OnSent() override {}
  void OnEnd(const absl::Status& status) override;

  // Until the manifest and `num_layers` layers are there (kAllLayers: all), retrying what broke.
  absl::Status WaitUntilArrived(int num_layers) ABSL_LOCKS_EXCLUDED(mu_);
  // Waits; returns when there is something to do without the lock.
  Step NextStep(int num_layers) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool HasArrived(int num_layers) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // After the stream ended too early: waits before the next attempt, or sets failure_.
  void PrepareRetry() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void OpenAttempt() ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status VerifyLayer(int layer) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status VerifyTables() ABSL_LOCKS_EXCLUDED(mu_);
  void Fail(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant after construction.
  const std::shared_ptr<ClientCore> core_;
  const std::vector<ObjectKey> keys_;
  const absl::Time deadline_;
  const ObjectNumbering numbering_;
  const int first_layer_;

  // Touched by the waiting thread alone.
  Backoff backoff_;
  int num_attempts_ = 0;
  std::vector<bool> verified_layers_;
  bool verified_tables_ = false;

  mutable Mutex mu_;
  CondVar changed_;
  GetAssembly assembly_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<MessageStream> stream_ ABSL_GUARDED_BY(mu_);
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status end_status_ ABSL_GUARDED_BY(mu_);  // of the attempt that ended
  absl::Status failure_ ABSL_GUARDED_BY(mu_);     // final
  absl::Time last_progress_ ABSL_GUARDED_BY(mu_);
  CallRecord record_ ABSL_GUARDED_BY(mu_);
};

}  // namespace pkv

#endif  // PKV_CLIENT_GET_CALL_H_
