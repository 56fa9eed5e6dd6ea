#ifndef PKV_WORKER_PREFILL_DIRECT_HANDOFF_H_
#define PKV_WORKER_PREFILL_DIRECT_HANDOFF_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "proto/base/clock.h"
#include "proto/transport/nccl/nccl_port.h"
#include "proto/transport/nccl/nccl_server.h"
#include "worker/prefill/direct_store.h"

namespace grpc {
class Service;
}

namespace pkv {

class DirectMetrics;

// A prefill worker's direct store behind the Handoff service (proto/pkv/v1/handoff.proto), which
// offers NCCL pairs and nothing else.
//
// Thread-safe.
class DirectHandoff {
 public:
  // `memory_bytes` of `port`'s GPU; `metrics` and `clock` outlive this.
  //   ResourceExhausted  the device has no room
  static absl::StatusOr<std::unique_ptr<DirectHandoff>> Make(const NcclPort& port,
                                                             uint64_t memory_bytes,
                                                             DirectMetrics* metrics, Clock* clock);
  // REQUIRES: the gRPC server that has the service has ended.
  ~DirectHandoff();
  DirectHandoff(const DirectHandoff&) = delete;
  DirectHandoff& operator=(const DirectHandoff&) = delete;

  DirectStore* store() { return store_.get(); }
  grpc::Service* service() { return service_.get(); }
  // Takes no more pairs; those that idle end, those that send when they have sent.
  void Stop() { server_->Stop(); }

 private:
  DirectHandoff();

  // Constant after Make(); each uses what stands above.
  std::unique_ptr<DirectStore> store_;
  std::unique_ptr<NcclServer> server_;
  std::unique_ptr<grpc::Service> service_;
};

}  // namespace pkv

#endif  // PKV_WORKER_PREFILL_DIRECT_HANDOFF_H_
