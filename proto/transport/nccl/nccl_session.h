#ifndef PKV_PROTO_TRANSPORT_NCCL_NCCL_SESSION_H_
#define PKV_PROTO_TRANSPORT_NCCL_NCCL_SESSION_H_

#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "pkv/block/object_key.h"
#include "pkv/v1/nccl_handoff.pb.h"
#include "proto/base/clock.h"
#include "proto/transport/nccl/nccl_pair.h"
#include "proto/transport/nccl/nccl_port.h"
#include "proto/transport/nccl/pair_offers.h"
#include "proto/transport/nccl/pair_source.h"

namespace pkv {

// What a reader that may stop at any time costs at most.
struct NcclLimits {
  NcclPairOptions pair = {.open_timeout = absl::Seconds(10)};
  TransferLimits transfer = {};
  // From the call to its hello.
  absl::Duration answer_timeout = absl::Seconds(5);
};

// What the sessions of one server share. Constant; what it points at outlives the sessions.
struct NcclShared {
  PairSource* source = nullptr;
  PairOffers* offers = nullptr;
  Clock* clock = nullptr;
  NcclPort port = {};
  NcclLimits limits = {};
};

// The reader's end of a control connection (Handoff.Pair), as a session sees it.
class PairPeer {
 public:
  virtual ~PairPeer() = default;

  // Queues; never waits. More than the reader takes is dropped, and Next says so.
  virtual void Send(const v1::PairReply& reply) = 0;
  // The next request; nothing once the reader has ended the call.
  //   DeadlineExceeded  none came in time
  //   Unavailable       this server is about to end
  //   InvalidArgument   the reader sends more than its answers, or does not read them
  virtual absl::StatusOr<std::optional<v1::PairRequest>> Next(absl::Duration timeout) = 0;
};

// The holder's side of one pair (nccl_handoff.proto): opens it and sends frames of its source from
// where they lie. Objects are held from a fetch until they have been sent, which a reader that does
// not take them ends by the transfer's stall bound, and the pair with it.
//
// Thread-compatible; PeerGone may be called from any thread at any time.
class NcclSession {
 public:
  // `shared` and `peer` outlive this.
  NcclSession(const NcclShared* shared, PairPeer* peer);

  // Until the reader ends the call: OK.
  //   InvalidArgument     what the reader says is not the protocol
  //   DeadlineExceeded, Unavailable, FailedPrecondition, Internal  the pair did not open or broke,
  //                       as NcclPair says, or the reader said no hello in time
  //   ResourceExhausted   no pair is offered now
  absl::Status Run();

  // After Run(): an offer was made, and its pair did not open.
  bool is_unopened() const { return is_unopened_; }

  // The reader's call has ended: whatever goes on over the pair ends soon.
  void PeerGone() { pair_.PeerGone("its call ended"); }

 private:
  absl::Status Greet();
  // Answers, and sends what the answer lists.
  absl::Status Fetch(const v1::PairFetch& fetch);
  // Adds to `manifest` what is to be said; null: nothing is held.
  std::unique_ptr<PairHold> Hold(v1::PairManifest& manifest);
  absl::Status OnDamaged(const v1::PairDamaged& report);

  const NcclShared& shared_;
  PairPeer& peer_;
  NcclPair pair_;
  bool is_unopened_ = false;
  std::vector<ObjectKey> keys_;  // of the last fetch
  std::vector<bool> reported_;   // damaged, of those
};

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_NCCL_NCCL_SESSION_H_
