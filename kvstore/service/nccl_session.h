#ifndef PKV_KVSTORE_SERVICE_NCCL_SESSION_H_
#define PKV_KVSTORE_SERVICE_NCCL_SESSION_H_

#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/service/service_metrics.h"
#include "kvstore/store/block_store.h"
#include "kvstore/store/pager.h"
#include "pkv/v1/nccl_handoff.pb.h"
#include "proto/base/clock.h"
#include "proto/transport/nccl/nccl_pair.h"
#include "proto/transport/nccl/nccl_port.h"

namespace pkv {

// What a reader that may stop at any time costs at most.
struct NcclLimits {
  NcclPairOptions pair = {.open_timeout = absl::Seconds(10)};
  TransferLimits transfer = {};
  // From the call to its hello; and how long what a manifest lists is held without a `ready`.
  absl::Duration answer_timeout = absl::Seconds(5);
};

// What the sessions of one server share. Constant; what it points at outlives the sessions.
struct NcclShared {
  BlockStore* store = nullptr;
  PageInSource disk = {};
  ServiceMetrics* metrics = nullptr;
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

// The server's side of one pair (nccl_handoff.proto): opens it and sends stored frames from where
// they lie, which the GPU reads through the bus. Objects are held by leases from a fetch until they
// have been sent.
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
  absl::Status Run();

  // The reader's call has ended: whatever goes on over the pair ends soon.
  void PeerGone() { pair_.PeerGone("its call ended"); }

 private:
  absl::Status Greet();
  absl::StatusOr<v1::PairManifest> Fetch(const v1::PairFetch& fetch);
  // A head of an object that can be sent; NotFound, DataLoss.
  absl::Status AddHead(Lease& lease, v1::PairManifest& manifest);
  absl::Status SendFrames();
  absl::Status OnDamaged(const v1::PairDamaged& report);

  const NcclShared& shared_;
  PairPeer& peer_;
  NcclPair pair_;
  std::vector<ObjectKey> keys_;      // of the last fetch
  std::vector<bool> reported_;       // damaged, of those
  std::vector<Lease> leases_;        // all of them, from a complete manifest until they are sent
  std::vector<ObjectHeader> heads_;  // of the leases
};

}  // namespace pkv

#endif  // PKV_KVSTORE_SERVICE_NCCL_SESSION_H_
