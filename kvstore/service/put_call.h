#ifndef PKV_KVSTORE_SERVICE_PUT_CALL_H_
#define PKV_KVSTORE_SERVICE_PUT_CALL_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "kvstore/service/rpc_call.h"

namespace pkv {

// Serves one Block.Put: reads a message, hands it to a PutSession, answers. The reactor deletes
// itself.
grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ServePut(
    const ServiceParts& parts, grpc::CallbackServerContext* context);

}  // namespace pkv

#endif  // PKV_KVSTORE_SERVICE_PUT_CALL_H_
