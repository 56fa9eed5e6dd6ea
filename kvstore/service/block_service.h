#ifndef PKV_KVSTORE_SERVICE_BLOCK_SERVICE_H_
#define PKV_KVSTORE_SERVICE_BLOCK_SERVICE_H_

#include <grpcpp/impl/service_type.h>

#include <functional>
#include <memory>

#include "kvstore/service/rpc_call.h"
#include "pkv/v1/handoff.pb.h"

namespace pkv {

class NcclServer;

// The services of cache_service.proto over a store. `parts` and what it points at outlive the
// gRPC server they are registered with. `drain` starts draining and may be called again.
std::unique_ptr<grpc::Service> MakeBlockService(const ServiceParts& parts);
std::unique_ptr<grpc::Service> MakeAdminService(const ServiceParts& parts,
                                                std::function<void()> drain);
// The service of handoff.proto; `open` answers, from gRPC's threads. `nccl` outlives the gRPC
// server; null: there are no pairs.
using OpenHandoff = std::function<v1::HandoffOpenResponse(const v1::HandoffOpenRequest&)>;
std::unique_ptr<grpc::Service> MakeHandoffService(const ServiceParts& parts, OpenHandoff open,
                                                  NcclServer* nccl);

}  // namespace pkv

#endif  // PKV_KVSTORE_SERVICE_BLOCK_SERVICE_H_
