#ifndef PKV_KVSTORE_SERVICE_GET_CALL_H_
#define PKV_KVSTORE_SERVICE_GET_CALL_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "kvstore/service/rpc_call.h"

namespace pkv {

// Serves one Block.Get: manifest, pieces, trailer, one message under way at a time, nothing copied.
// The reactor deletes itself.
grpc::ServerWriteReactor<grpc::ByteBuffer>* ServeGet(const ServiceParts& parts,
                                                     grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer& request);

}  // namespace pkv

#endif  // PKV_KVSTORE_SERVICE_GET_CALL_H_
