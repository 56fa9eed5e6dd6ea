#ifndef PKV_KVSTORE_SERVICE_PAIR_CALL_H_
#define PKV_KVSTORE_SERVICE_PAIR_CALL_H_

#include <grpcpp/support/server_callback.h>

#include "kvstore/service/nccl_server.h"
#include "kvstore/service/rpc_call.h"
#include "pkv/v1/nccl_handoff.pb.h"

namespace pkv {

// Serves one Handoff.Pair: an NcclSession on a thread of its own, which the serving threads never
// wait for. `server` null: Unimplemented. What the pointers name outlives the call.
grpc::ServerBidiReactor<v1::PairRequest, v1::PairReply>* ServePair(
    const ServiceParts& parts, NcclServer* server, grpc::CallbackServerContext* context);

}  // namespace pkv

#endif  // PKV_KVSTORE_SERVICE_PAIR_CALL_H_
