#ifndef PKV_TESTS_SUPPORT_SCRIPTED_SERVER_H_
#define PKV_TESTS_SUPPORT_SCRIPTED_SERVER_H_

// A gRPC server on a loopback port whose answers are functions.

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "pkv/v1/cache_service.grpc.pb.h"
#include "proto/base/log.h"
#include "tests/support/data_frames.h"

namespace pkv {

// Set the functions before the first call; a call without one is Unimplemented. They run in gRPC's
// threads.
class ScriptedServer final : private v1::Block::Service {
 public:
  using PutIo = grpc::ServerReaderWriter<v1::PutReply, v1::DataFrame>;
  std::function<grpc::Status(grpc::ServerContext*, PutIo*)> put;
  std::function<grpc::Status(grpc::ServerContext*, const v1::GetRequest*,
                             grpc::ServerWriter<v1::DataFrame>*)>
      get;
  std::function<grpc::Status(grpc::ServerContext*, const v1::LookupRequest*, v1::LookupResponse*)>
      lookup;

  ScriptedServer() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    PKV_CHECK(server_ != nullptr && port_ > 0, "port ", port_);
  }
  ~ScriptedServer() override { server_->Shutdown(std::chrono::system_clock::now()); }

  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

 private:
  grpc::Status Put(grpc::ServerContext* context, PutIo* stream) override {
    return put ? put(context, stream) : Service::Put(context, stream);
  }
  grpc::Status Get(grpc::ServerContext* context, const v1::GetRequest* request,
                   grpc::ServerWriter<v1::DataFrame>* writer) override {
    return get ? get(context, request, writer) : Service::Get(context, request, writer);
  }
  grpc::Status Lookup(grpc::ServerContext* context, const v1::LookupRequest* request,
                      v1::LookupResponse* response) override {
    return lookup ? lookup(context, request, response)
                  : Service::Lookup(context, request, response);
  }

  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

// A put that hangs until its client goes: cancelled, or half-closed.
inline grpc::Status WaitForCancel(grpc::ServerContext*, ScriptedServer::PutIo* stream) {
  v1::DataFrame frame;
  while (stream->Read(&frame)) {
  }
  return grpc::Status::CANCELLED;
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_SCRIPTED_SERVER_H_
