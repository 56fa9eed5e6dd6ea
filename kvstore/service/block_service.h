#ifndef PKV_KVSTORE_SERVICE_BLOCK_SERVICE_H_
#define PKV_KVSTORE_SERVICE_BLOCK_SERVICE_H_

#include <grpcpp/impl/service_type.h>

#include <functional>
#include <memory>

#include "kvstore/service/rpc_call.h"

namespace pkv {

// The gRPC services of cache_service.proto over a store. `parts` and what it points at outlive the
// gRPC server they are registered with. `drain` starts draining and may be called again.
std::unique_ptr<grpc::Service> MakeBlockService(const ServiceParts& parts);
std::unique_ptr<grpc::Service> MakeAdminService(const ServiceParts& parts,
                                                std::function<void()> drain);

}  // namespace pkv

#endif  // PKV_KVSTORE_SERVICE_BLOCK_SERVICE_H_
