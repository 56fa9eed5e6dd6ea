#ifndef PKV_CLIENT_NCCL_LINK_H_
#define PKV_CLIENT_NCCL_LINK_H_

#include <atomic>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/connection.h"
#include "pkv/block/object_key.h"
#include "pkv/v1/nccl_handoff.pb.h"
#include "proto/base/clock.h"
#include "proto/base/sync.h"
#include "proto/transport/nccl/nccl_pair.h"
#include "proto/transport/nccl/nccl_port.h"

namespace pkv {

// One pair of the nccl transport (nccl_handoff.proto), the reader's end: its control connection and
// the communicator. One get at a time has its turn on it.
//
// A link that broke stays broken. Thread-safe, as far as turns are kept to.
class NcclLink final : private StreamReceiver {
 public:
  // Opens both, in `timeout`. `connection` and `clock` outlive the link.
  //   as the server's call ends; Unavailable, DeadlineExceeded, ResourceExhausted (no memory for
  //   staging), Internal, as NcclPair::Open
  //   DataLoss  the server says what it should not
  static absl::StatusOr<std::shared_ptr<NcclLink>> Open(Connection* connection,
                                                        const NcclPort& port,
                                                        absl::Duration timeout, Clock* clock);
  // Aborts the pair.
  ~NcclLink() override;
  NcclLink(const NcclLink&) = delete;
  NcclLink& operator=(const NcclLink&) = delete;

  // The right to what follows; the next one's when destroyed. Must not outlive the link.
  class Turn {
   public:
    explicit Turn(NcclLink* link) : link_(link) {}
    // What was not received comes now, until the deadline of Fetch, and is dropped.
    ~Turn() { link_->EndTurn(); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

    // Asks the server for these objects. `manifest` lists as many heads, or has a code. When it is
    // complete, their frames, of total_bytes() together, come to the pair's staging from now on.
    // Waits until `deadline`, 2 s at most.
    //   Unavailable, DeadlineExceeded  the link is broken now
    //   DataLoss                       the answer makes no sense; broken too
    absl::StatusOr<v1::PairManifest> Fetch(std::span<const ObjectKey> keys, absl::Time deadline) {
      return link_->Fetch(keys, deadline);
    }
    // As the heads say; nothing of them has been checked. 0: nothing comes.
    uint64_t total_bytes() const { return link_->coming_bytes_; }
    // Receives them. As NcclPair::Receive. REQUIRES: source.total_bytes as told.
    absl::Status Receive(const LayerSource& source, const TransferLimits& limits,
                         const NcclPair::LayerDone& layer_done) {
      return link_->Receive(source, limits, layer_done);
    }
    // Ends the link: of a manifest that makes no sense nothing is to be received.
    void GiveUp(const absl::Status& reason) { link_->GiveUp(reason); }
    // The object whose frame Receive found damaged first, if it did. The server is told to look.
    std::optional<NcclPair::BadSpan> ReportDamage() { return link_->ReportDamage(); }

   private:
    NcclLink* const link_;
  };
  // Waits for it until `deadline`, or until `*cancelled` and Wake().
  //   Unavailable  the link is broken; DeadlineExceeded, Cancelled
  absl::StatusOr<std::unique_ptr<Turn>> TakeTurn(absl::Time deadline,
                                                 const std::atomic<bool>& cancelled);
  void Wake();

  bool broken() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  NcclLink(const NcclPort& port, Clock* clock) : port_(port), clock_(clock) {}

  absl::Status OnMessage(grpc::ByteBuffer& message) override;
  void OnSent() override {}
  void OnEnd(const absl::Status& status) override;

  absl::Status OpenPair(absl::Time deadline);
  void Send(const v1::PairRequest& request);
  // The server's next message.
  absl::StatusOr<v1::PairReply> Await(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  void EndTurn() ABSL_LOCKS_EXCLUDED(mu_);
  void Break(const absl::Status& reason) ABSL_LOCKS_EXCLUDED(mu_);

  absl::StatusOr<v1::PairManifest> Fetch(std::span<const ObjectKey> keys, absl::Time deadline);
  void GiveUp(const absl::Status& reason);
  void Drop();
  absl::Status Receive(const LayerSource& source, const TransferLimits& limits,
                       const NcclPair::LayerDone& layer_done);
  std::optional<NcclPair::BadSpan> ReportDamage();

  // Constant after Open().
  const NcclPort port_;
  Clock* const clock_;
  std::unique_ptr<MessageStream> stream_;
  // Used by who has the turn. Set under mu_, where OnEnd reads it.
  std::unique_ptr<NcclPair> pair_;
  uint64_t coming_bytes_ = 0;  // of a complete manifest whose frames are not received
  absl::Time fetched_until_;   // the deadline of who asked for them

  mutable Mutex mu_;
  CondVar changed_;
  std::optional<v1::PairReply> reply_ ABSL_GUARDED_BY(mu_);
  absl::Status end_ ABSL_GUARDED_BY(mu_);  // not OK: broken, and why
  bool taken_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace pkv

#endif  // PKV_CLIENT_NCCL_LINK_H_
