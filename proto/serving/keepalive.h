#ifndef PKV_PROTO_SERVING_KEEPALIVE_H_
#define PKV_PROTO_SERVING_KEEPALIVE_H_

#include <grpcpp/server_builder.h>

namespace pkv {

// Takes the pings that our clients send on connections on which little is said, which gRPC's server
// would otherwise end for them, and pings as they do: a host that is gone without a word ends its
// calls within half a minute.
inline void SetKeepalive(grpc::ServerBuilder& builder) {
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 3);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
}

}  // namespace pkv

#endif  // PKV_PROTO_SERVING_KEEPALIVE_H_
