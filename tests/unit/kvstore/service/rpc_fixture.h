#ifndef PKV_TESTS_UNIT_KVSTORE_SERVICE_RPC_FIXTURE_H_
#define PKV_TESTS_UNIT_KVSTORE_SERVICE_RPC_FIXTURE_H_

#include <grpc/grpc.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "kvstore/service/block_service.h"
#include "pkv/v1/cache_service.grpc.pb.h"
#include "proto/transport/convert.h"
#include "proto/transport/data_frame.h"
#include "tests/unit/kvstore/service/service_fixture.h"

namespace pkv {

// The services behind a real gRPC server and channel. Clients use the generated stub: on the wire a
// DataFrame is an ordinary message.
class RpcFixture : public ServiceFixture {
 protected:
  // Once gRPC's last object is gone it ends its threads, which may take its pollers ten seconds;
  // between two tests that is waited for. Never the last one, then.
  static void SetUpTestSuite() { grpc_init(); }

  void StartServer(uint64_t units) {
    MakeService(units);
    block_service_ = MakeBlockService(parts_);
    admin_service_ = MakeAdminService(parts_, [this] { draining_ = true; });
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(block_service_.get());
    builder.RegisterService(admin_service_.get());
    server_ = builder.BuildAndStart();
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
    // A window of 64 KiB for each stream: what a client buffers lies in this process too.
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    channel_ = grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port),
                                         grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::Block::NewStub(channel_);
    admin_ = v1::Admin::NewStub(channel_);
  }

  // Afterwards every call has ended, on the server's side too.
  void StopServer() {
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    server_.reset();
    // A transport may let go of its last slices a moment later.
    const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (store_->stats().pinned_bytes > 0 && std::chrono::steady_clock::now() < patience) {
      std::this_thread::yield();
    }
  }
  void TearDown() override { StopServer(); }

  // A client context whose calls end within a minute.
  struct Context : grpc::ClientContext {
    Context() { set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1)); }
  };

  static v1::DataFrame BeginOf(const SealedObject& object) {
    v1::DataFrame frame;
    v1::ObjectDescriptor* descriptor = frame.mutable_control()->mutable_put_begin()->add_objects();
    *descriptor->mutable_key() = ToProto(object.key());
    descriptor->set_num_layers(object.header.num_layers);
    descriptor->set_frame_bytes(object.header.frame_bytes);
    return frame;
  }

  static v1::DataFrame PieceOf(const SealedObject& object, int layer) {
    v1::DataFrame frame;
    v1::Piece* piece = frame.mutable_control()->add_pieces();
    piece->set_layer(static_cast<uint32_t>(layer));
    piece->set_length(static_cast<uint32_t>(object.header.frame_bytes));
    frame.set_payload(object.frame(layer).data(), object.frame(layer).size());
    return frame;
  }

  static v1::DataFrame CommitOf(const SealedObject& object) {
    v1::DataFrame frame;
    frame.mutable_control()->mutable_put_commit()->set_head(object.head().data(),
                                                            object.head().size());
    return frame;
  }

  std::unique_ptr<grpc::Service> block_service_;
  std::unique_ptr<grpc::Service> admin_service_;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Block::Stub> stub_;
  std::unique_ptr<v1::Admin::Stub> admin_;
};

}  // namespace pkv

#endif  // PKV_TESTS_UNIT_KVSTORE_SERVICE_RPC_FIXTURE_H_
