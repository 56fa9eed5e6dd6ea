#ifndef PKV_KVSTORE_SERVICE_NCCL_SERVER_H_
#define PKV_KVSTORE_SERVICE_NCCL_SERVER_H_

#include <functional>
#include <map>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/service/nccl_session.h"
#include "pkv/v1/handoff.pb.h"
#include "proto/base/sync.h"

namespace pkv {

struct NcclServerOptions {
  // At a time; each has a thread and, on the GPU, three staging buffers of pair.group_bytes.
  int max_pairs = 8;
  NcclLimits limits = {};
  PageInSource disk = {};
};

// Sends stored objects to readers' GPUs through a GPU of this process (nccl_handoff.proto): what
// the pairs of one server share, and how many there are. pair_call.h serves them.
//
// Thread-safe.
class NcclServer {
 public:
  // Lets the GPU read the store's memory, all of which is pinned for that: seconds to minutes,
  // which the log tells of. What the pointers name outlives this.
  //   InvalidArgument    max_pairs below 1
  //   ResourceExhausted  there is less memory than the capacity
  //   others             PairCalls::RegisterHost
  static absl::StatusOr<std::unique_ptr<NcclServer>> Start(const NcclServerOptions& options,
                                                           const NcclPort& port, BlockStore* store,
                                                           ServiceMetrics* metrics, Clock* clock);
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
  //   ResourceExhausted  all taken
  //   Unavailable        about to end
  absl::StatusOr<std::unique_ptr<Place>> TakePlace(std::function<void()> stop);

  const NcclShared& shared() const { return shared_; }

  // Pairs that idle end, those that send when they have sent. Idempotent.
  void Stop();

 private:
  NcclServer(const NcclServerOptions& options, const NcclShared& shared);
  void Leave(int id);

  // Constant after construction.
  const NcclServerOptions options_;
  const NcclShared shared_;

  Mutex mu_;
  std::map<int, std::function<void()>> places_ ABSL_GUARDED_BY(mu_);
  int next_id_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace pkv

#endif  // PKV_KVSTORE_SERVICE_NCCL_SERVER_H_
