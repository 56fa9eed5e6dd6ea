#ifndef PKV_KVSTORE_SERVICE_RPC_CALL_H_
#define PKV_KVSTORE_SERVICE_RPC_CALL_H_

#include <grpcpp/server_context.h>

#include <atomic>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kvstore/service/service_metrics.h"
#include "kvstore/service/shm_stage.h"
#include "kvstore/service/stall_watchdog.h"
#include "kvstore/store/block_store.h"
#include "kvstore/store/pager.h"
#include "proto/base/clock.h"

namespace pkv {

// What the handlers share. All of it outlives the gRPC server.
struct ServiceParts {
  BlockStore* store = nullptr;
  const SegmentLog* log = nullptr;  // null, and no pager: there is no disk
  PageInSource disk = {};
  ServiceMetrics* metrics = nullptr;
  StallWatchdog* watchdog = nullptr;
  Clock* clock = nullptr;
  const std::atomic<bool>* draining = nullptr;
  ShmStages* stages = nullptr;  // of puts over shm; null: there are none
};

// Counts one call from construction to End().
// Thread-compatible.
class RpcCall {
 public:
  RpcCall(const ServiceParts& parts, RpcMethod method);
  void End(absl::StatusCode code);

 private:
  ServiceMetrics* const metrics_;
  Clock* const clock_;
  const RpcMethod method_;
  const absl::Time began_;
};

// InvalidArgument, counted, when the caller set no deadline: such a call might never end.
absl::Status RequireDeadline(const ServiceParts& parts, const grpc::ServerContextBase& context);

// How long a call may wait for the disk: half of what it has left at most, so that there is time to
// send what came.
absl::Duration PageInPatience(const ServiceParts& parts, const grpc::ServerContextBase& context);

// Why a call that was cut off ended: its deadline, or somebody cancelled it.
absl::Status CutOffStatus(const grpc::ServerContextBase& context);

// Cancels the call from any thread, also after the call itself is gone.
std::function<void()> MakeCancel(grpc::ServerContextBase& context);

}  // namespace pkv

#endif  // PKV_KVSTORE_SERVICE_RPC_CALL_H_
