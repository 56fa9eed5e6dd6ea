#ifndef PKV_TESTS_SUPPORT_HEALTH_CHECK_H_
#define PKV_TESTS_SUPPORT_HEALTH_CHECK_H_

#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>

#include <chrono>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace pkv {

// Calls `method` of the server on `address` with a message of these bytes.
inline absl::StatusOr<std::string> CallWithBytes(const std::string& address,
                                                 const std::string& method,
                                                 const std::string& message) {
  grpc::TemplatedGenericStub<grpc::ByteBuffer, grpc::ByteBuffer> stub(
      grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
  const grpc::Slice slice(message);
  const grpc::ByteBuffer request(&slice, 1);
  grpc::ByteBuffer response;
  // Not with a callback: that would run in a thread of gRPC's, which TSan does not see.
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareUnaryCall(&context, method, request, &queue);
  call->StartCall();
  grpc::Status status;
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  if (!status.ok()) {
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  }
  std::vector<grpc::Slice> slices;
  if (!response.Dump(&slices).ok()) return absl::DataLossError("no answer");
  std::string bytes;
  for (const grpc::Slice& part : slices) {
    bytes.append(reinterpret_cast<const char*>(part.begin()), part.size());
  }
  return bytes;
}

// grpc.health.v1.Health/Check for `service`: true when SERVING. NotFound: it does not know that
// service. The messages are written by hand: gRPC installs no header for them.
inline absl::StatusOr<bool> IsServing(const std::string& address, absl::string_view service) {
  std::string request;
  if (!service.empty()) {
    request = {'\x0a', static_cast<char>(service.size())};
    request.append(service.data(), service.size());
  }
  const absl::StatusOr<std::string> answer =
      CallWithBytes(address, "/grpc.health.v1.Health/Check", request);
  if (!answer.ok()) return answer.status();
  return *answer == "\x08\x01";
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_HEALTH_CHECK_H_
