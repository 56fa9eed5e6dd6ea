#ifndef PKV_CLIENT_CONNECTION_H_
#define PKV_CLIENT_CONNECTION_H_

// What the calls of the SDK need from gRPC, and no more: grpc_connection.cc is the only file that
// includes the rest of it, and tests put a script in its place.

#include <grpcpp/support/byte_buffer.h>

#include <memory>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "pkv/client/client_options.h"
#include "pkv/v1/cache_service.pb.h"
#include "pkv/v1/handoff.pb.h"

namespace pkv {

// Told what happens on a stream, in the transport's threads, one call at a time for OnMessage and
// OnEnd. Must not block.
class StreamReceiver {
 public:
  virtual ~StreamReceiver() = default;

  // In order of arrival. Not OK: the stream is cancelled and ends with this status.
  virtual absl::Status OnMessage(grpc::ByteBuffer& message) = 0;
  // One message given to Send() has left or was dropped.
  virtual void OnSent() = 0;
  // The last call.
  virtual void OnEnd(const absl::Status& status) = 0;
};

// A call with messages both ways. Destruction cancels it and returns when the receiver will not be
// called again.
//
// Thread-safe.
class MessageStream {
 public:
  virtual ~MessageStream() = default;

  // Queues a message; never blocks. The caller bounds the queue by counting OnSent().
  virtual void Send(grpc::ByteBuffer message) = 0;
  // No Send() will follow.
  virtual void HalfClose() = 0;
  virtual void Cancel() = 0;
};

enum class StreamMethod { kGet, kPut, kPair };

// A connection to one server. Every call ends by its timeout.
//
// Thread-safe.
class Connection {
 public:
  virtual ~Connection() = default;

  virtual absl::Status Lookup(const v1::LookupRequest& request, absl::Duration timeout,
                              v1::LookupResponse& response) = 0;
  virtual absl::Status Stat(const v1::StatRequest& request, absl::Duration timeout,
                            v1::StatResponse& response) = 0;
  virtual absl::Status Delete(const v1::DeleteRequest& request, absl::Duration timeout,
                              v1::DeleteResponse& response) = 0;
  virtual absl::Status Stats(absl::Duration timeout, v1::StatsResponse& response) = 0;
  virtual absl::Status Drain(absl::Duration timeout) = 0;
  // Unimplemented: the server does not know the call.
  virtual absl::Status OpenHandoff(const v1::HandoffOpenRequest& request, absl::Duration timeout,
                                   v1::HandoffOpenResponse& response) {
    return absl::UnimplementedError("no handoff");
  }

  // Dials at once when it is not connected, however long earlier failures would have it wait.
  virtual void Reconnect() {}

  // `receiver` must outlive the stream.
  virtual std::unique_ptr<MessageStream> OpenStream(StreamMethod method, absl::Duration timeout,
                                                    StreamReceiver* receiver) = 0;
};

// REQUIRES: `options` are valid. Does not wait for the server.
std::unique_ptr<Connection> MakeGrpcConnection(const ClientOptions& options);

}  // namespace pkv

#endif  // PKV_CLIENT_CONNECTION_H_
