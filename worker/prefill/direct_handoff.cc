#include "worker/prefill/direct_handoff.h"

#include <grpcpp/grpcpp.h>

#include "pkv/v1/handoff.grpc.pb.h"
#include "proto/base/status_macros.h"
#include "proto/transport/nccl/pair_call.h"

namespace pkv {
namespace {

class Service final : public v1::Handoff::CallbackService {
 public:
  explicit Service(NcclServer* server) : server_(*server) {}

  grpc::ServerUnaryReactor* Open(grpc::CallbackServerContext* context,
                                 const v1::HandoffOpenRequest* request,
                                 v1::HandoffOpenResponse* response) override {
    response->set_reason("a prefill worker has no shm socket");
    server_.Answer(*request, *response);
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  grpc::ServerBidiReactor<v1::PairRequest, v1::PairReply>* Pair(
      grpc::CallbackServerContext* context) override {
    return ServePair(&server_, context, CheckDeadline(*context), [](absl::StatusCode) {});
  }

 private:
  NcclServer& server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DirectHandoff>> DirectHandoff::Make(const NcclPort& port,
                                                                   uint64_t memory_bytes,
                                                                   DirectMetrics* metrics,
                                                                   Clock* clock) {
  std::unique_ptr<DirectHandoff> handoff(new DirectHandoff);
  PKV_ASSIGN_OR_RETURN(handoff->store_, DirectStore::Make(port.calls, memory_bytes, metrics));
  PKV_ASSIGN_OR_RETURN(handoff->server_, NcclServer::Make({}, port, handoff->store_.get(), clock));
  handoff->service_ = std::make_unique<Service>(handoff->server_.get());
  return handoff;
}

DirectHandoff::DirectHandoff() = default;

DirectHandoff::~DirectHandoff() = default;

}  // namespace pkv
