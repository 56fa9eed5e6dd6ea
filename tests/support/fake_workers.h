#ifndef PKV_TESTS_SUPPORT_FAKE_WORKERS_H_
#define PKV_TESTS_SUPPORT_FAKE_WORKERS_H_

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "pkv/v1/worker_service.grpc.pb.h"

namespace pkv {

// A prefill and a decode worker without a model, on one port of loopback. A test replaces what they
// do; the calls of both run on threads of gRPC's. Set before the first call.
class FakeWorkers {
 public:
  using Emit = std::function<void(const v1::DecodeEvent&)>;
  using OnPrefill = std::function<grpc::Status(const v1::PrefillRequest&, v1::PrefillResponse*)>;
  using OnDecode = std::function<grpc::Status(const v1::DecodeRequest&, const Emit&)>;

  FakeWorkers() : prefill_(this), decode_(this) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(&prefill_);
    builder.RegisterService(&decode_);
    server_ = builder.BuildAndStart();
    EXPECT_NE(port_, 0);
  }
  ~FakeWorkers() { Stop(); }
  void Stop() {
    if (server_ != nullptr) server_->Shutdown();
    server_.reset();
  }

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  // A text's tokens are 1 and its bytes; everything is stored.
  static grpc::Status Store(const v1::PrefillRequest& request, v1::PrefillResponse* response) {
    v1::HandoffTicket& ticket = *response->mutable_ticket();
    *ticket.mutable_token_ids() = request.prompt().token_ids();
    if (ticket.token_ids().empty()) ticket.add_token_ids(1);
    for (const char byte : request.prompt().text()) {
      ticket.add_token_ids(static_cast<unsigned char>(byte));
    }
    response->mutable_stats()->set_prompt_tokens(ticket.token_ids_size());
    response->mutable_stats()->set_stored(true);
    return grpc::Status::OK;
  }
  // All tokens asked for, then the stats.
  static grpc::Status Answer(const v1::DecodeRequest& request, const Emit& emit) {
    v1::DecodeEvent event;
    for (uint32_t i = 0; i < request.sampling().max_tokens(); ++i) {
      event.mutable_token()->set_token_id(static_cast<int32_t>(i));
      emit(event);
    }
    event.mutable_stats()->set_first_token_seconds(0.25);
    emit(event);
    return grpc::Status::OK;
  }
  static grpc::Status Refuse() {
    return {grpc::StatusCode::RESOURCE_EXHAUSTED, "too many requests"};
  }

  OnPrefill on_prefill = Store;
  OnDecode on_decode = Answer;
  std::atomic<int> num_prefills{0}, num_decodes{0};  // calls, refused ones too

 private:
  struct PrefillService final : v1::Prefill::Service {
    explicit PrefillService(FakeWorkers* workers_in) : workers(workers_in) {}
    grpc::Status Prefill(grpc::ServerContext*, const v1::PrefillRequest* request,
                         v1::PrefillResponse* response) override {
      ++workers->num_prefills;
      return workers->on_prefill(*request, response);
    }
    FakeWorkers* workers;
  };
  struct DecodeService final : v1::Decode::Service {
    explicit DecodeService(FakeWorkers* workers_in) : workers(workers_in) {}
    grpc::Status Decode(grpc::ServerContext*, const v1::DecodeRequest* request,
                        grpc::ServerWriter<v1::DecodeEvent>* writer) override {
      ++workers->num_decodes;
      return workers->on_decode(*request,
                                [writer](const v1::DecodeEvent& event) { writer->Write(event); });
    }
    FakeWorkers* workers;
  };

  PrefillService prefill_;
  DecodeService decode_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_FAKE_WORKERS_H_
