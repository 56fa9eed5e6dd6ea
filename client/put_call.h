#ifndef PKV_CLIENT_PUT_CALL_H_
#define PKV_CLIENT_PUT_CALL_H_

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "client/client_core.h"
#include "client/put_stage.h"
#include "proto/base/sync.h"

namespace pkv {

// What a call is counted as: the first code of its objects that is not OK.
absl::StatusCode CodeOf(std::span<const PutOutcome> outcomes);

// PutStream over a Connection: one attempt, never repeated by itself. Payload goes along in its
// messages, or over shm by way of a stage (put_stage.h) if there is one: all else is the same. At
// most kMaxQueuedMessages messages wait for the network, and as many of a stage's slots as there
// are for the server; then the writer waits.
class PutCall final : public PutStream, private StreamReceiver {
 public:
  // Opens the stream and waits for the decisions. `deadline` is on the core's clock.
  //   InvalidArgument  number of objects, of layers or of bytes in a frame
  //   Unavailable, DeadlineExceeded, ResourceExhausted
  //   others           Transport::kShm alone: as PutStage::Open
  // shared_ptr: a stream may outlive the client that started it.
  static absl::StatusOr<std::unique_ptr<PutCall>> Start(std::shared_ptr<ClientCore> core,
                                                        std::span<const ObjectDescriptor> objects,
                                                        absl::Time deadline);
  ~PutCall() override;

  const std::vector<PutDecision>& decisions() const override { return decisions_; }
  absl::Status refusal(int object_index) const override;
  absl::Status WriteLayer(int layer, std::span<const std::span<const std::byte>> frames) override;
  absl::Status Commit(int object_index, std::span<const std::byte> head) override;
  std::vector<PutOutcome> Finish() override;
  void Cancel() override;

  // Finish() for a caller that may try again: counts no failure.
  std::vector<PutOutcome> Collect();
  // The call that this stream is part of, to be ended by Finish().
  void CountIn(CallRecord record) { record_.emplace(std::move(record)); }

 private:
  // What the caller did with one object.
  struct Upload {
    std::vector<bool> written_layers;
    int num_written = 0;
    bool committed = false;
  };

  PutCall(std::shared_ptr<ClientCore> core, std::span<const ObjectDescriptor> objects,
          absl::Time deadline);

  absl::Status Open() ABSL_LOCKS_EXCLUDED(mu_);
  // A stage, if there is to be one.
  absl::Status OpenStage();
  // What follows from the answer to the begin. Unavailable: Transport::kShm, and it is not to be.
  absl::Status SettleStage(bool is_staged);
  // Whether the server takes payload from the stage.
  absl::StatusOr<bool> WaitForDecisions() ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status CheckFrame(int layer, int object_index, std::span<const std::byte> frame) const;
  // Waits for the server to have emptied the stage's next slot, if there is a stage.
  absl::Status WaitForSlot() ABSL_LOCKS_EXCLUDED(mu_);
  // Waits for room in the queue. Of those with payload, `is_staged` says whether it is in a slot.
  absl::Status Send(grpc::ByteBuffer message, bool is_staged = false) ABSL_LOCKS_EXCLUDED(mu_);
  // One wait, ended early by any change. Sets failure_ when the time is over.
  void WaitOnce(absl::Time since) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Fail(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Why the stream is of no more use; OK while it is.
  absl::Status Broken() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  PutOutcome OutcomeOf(int object_index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  absl::Status OnMessage(grpc::ByteBuffer& message) override;
  absl::Status OnAccepted(const v1::PutAccepted& accepted) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status OnTaken() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status OnReceipt(const v1::PutReceipt& receipt) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void OnSent() override;
  void OnEnd(const absl::Status& status) override;

  // Constant after construction.
  const std::shared_ptr<ClientCore> core_;
  const std::vector<ObjectDescriptor> objects_;
  const absl::Time deadline_;

  // Touched by the writing thread alone. Null: payload goes in the messages.
  std::unique_ptr<PutStage> stage_;
  bool falls_back_ = false;  // likewise: although the server offers shm
  // Likewise. Decisions and refusals are constant after Start().
  std::vector<PutDecision> decisions_;
  std::vector<absl::Status> refusals_;
  std::vector<Upload> uploads_;
  std::unique_ptr<MessageStream> stream_;  // constant after Open()
  std::optional<CallRecord> record_;

  Mutex mu_;
  CondVar changed_;
  bool accepted_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<PutDecision> received_decisions_ ABSL_GUARDED_BY(mu_);
  std::vector<absl::Status> received_refusals_ ABSL_GUARDED_BY(mu_);
  std::vector<std::optional<PutOutcome>> receipts_ ABSL_GUARDED_BY(mu_);
  bool is_staged_ ABSL_GUARDED_BY(mu_) = false;  // so the server says
  int num_queued_ ABSL_GUARDED_BY(mu_) = 0;
  int num_staged_ ABSL_GUARDED_BY(mu_) = 0;  // messages whose slot the server has not emptied
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status end_status_ ABSL_GUARDED_BY(mu_);
  absl::Status failure_ ABSL_GUARDED_BY(mu_);  // ours: cancelled or out of time
  absl::Time last_progress_ ABSL_GUARDED_BY(mu_);
};

}  // namespace pkv

#endif  // PKV_CLIENT_PUT_CALL_H_
