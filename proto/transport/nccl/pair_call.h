#ifndef PKV_PROTO_TRANSPORT_NCCL_PAIR_CALL_H_
#define PKV_PROTO_TRANSPORT_NCCL_PAIR_CALL_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <functional>

#include "absl/status/status.h"
#include "pkv/v1/nccl_handoff.pb.h"
#include "proto/transport/nccl/nccl_server.h"

namespace pkv {

// Serves one Handoff.Pair: an NcclSession on a thread of its own, which the serving threads never
// wait for. `server` null: Unimplemented; otherwise it outlives the call. `admitted` not OK: what
// the call ends with instead. `on_end` is called once, last, with how it ended.
grpc::ServerBidiReactor<v1::PairRequest, v1::PairReply>* ServePair(
    NcclServer* server, grpc::CallbackServerContext* context, absl::Status admitted,
    std::function<void(absl::StatusCode)> on_end);

// InvalidArgument when the caller set no deadline: such a call might never end.
absl::Status CheckDeadline(const grpc::ServerContextBase& context);

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_NCCL_PAIR_CALL_H_
