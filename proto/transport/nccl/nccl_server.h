#ifndef PKV_PROTO_TRANSPORT_NCCL_NCCL_SERVER_H_
#define PKV_PROTO_TRANSPORT_NCCL_NCCL_SERVER_H_

#include <functional>
#include <map>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/v1/handoff.pb.h"
#include "proto/base/sync.h"
#include "proto/transport/nccl/nccl_session.h"
#include "proto/transport/nccl/pair_offers.h"

namespace pkv {

struct NcclServerOptions {
  // At a time; each has a thread and, on the GPU, three staging buffers of pair.group_bytes.
  int max_pairs = 8;
  NcclLimits limits = {};
};

// Sends objects of a source to readers' GPUs through a GPU of this process (nccl_handoff.proto):
// what the pairs of one server share, how many there are, and whether another is offered
// (pair_offers.h). pair_call.h serves them.
//
// Thread-safe.
class NcclServer {
 public:
  // What the pointers name outlives this.
  //   InvalidArgument  max_pairs below 1
  static absl::StatusOr<std::unique_ptr<NcclServer>> Make(const NcclServerOptions& options,
                                                          const NcclPort& port, PairSource* source,
                                                          Clock* clock);
  // REQUIRES: no place is left.
  ~NcclServer();
  NcclServer(const NcclServer&) = delete;
  NcclServer& operator=(const NcclServer&) = delete;

  // What is offered to who asks over gRPC: adds to `response`.
  void Answer(const v1::HandoffOpenRequest& request, v1::HandoffOpenResponse& response) const;

  // A pair's place among max_pairs.
  class Place {
   public:
    Place(NcclServer* server, int id) : server_(server), id_(id) {}
    ~Place() { server_->Leave(id_); }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;

   private:
    NcclServer* const server_;
    const int id_;
  };
  // `stop` is called at most once, while the place stands, when this server is about to end; it
  // must not call this server.
  //   ResourceExhausted  all taken, or no pair is offered now
  //   Unavailable        about to end
  absl::StatusOr<std::unique_ptr<Place>> TakePlace(std::function<void()> stop);

  const NcclShared& shared() const { return shared_; }

  // Pairs that idle end, those that send when they have sent. Idempotent.
  void Stop();

 private:
  NcclServer(const NcclServerOptions& options, const NcclPort& port, PairSource* source,
             Clock* clock);
  void Leave(int id);

  // Constant after construction.
  const NcclServerOptions options_;
  // Thread-safe.
  PairOffers offers_;
  const NcclShared shared_;  // constant; names offers_

  Mutex mu_;
  std::map<int, std::function<void()>> places_ ABSL_GUARDED_BY(mu_);
  int next_id_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_NCCL_NCCL_SERVER_H_
