#include "tests/bench/serve/worker_calls.h"

#include <grpcpp/grpcpp.h>

#include <utility>

#include "absl/time/clock.h"
#include "pkv/v1/worker_service.grpc.pb.h"
#include "proto/base/log.h"
#include "proto/transport/convert.h"

namespace pkv {
namespace {

using PrefillDone = std::function<void(absl::StatusOr<v1::PrefillResponse>)>;
using DecodeDone = std::function<void(absl::Status)>;

struct PrefillCall {
  grpc::ClientContext context;
  v1::PrefillRequest request;
  v1::PrefillResponse response;
  PrefillDone done;
};

// One stream. Deletes itself when done.
class DecodeReader final : public grpc::ClientReadReactor<v1::DecodeEvent> {
 public:
  DecodeReader(v1::DecodeRequest request, std::function<void(const v1::DecodeEvent&)> on_event,
               DecodeDone done)
      : request_(std::move(request)), on_event_(std::move(on_event)), done_(std::move(done)) {}

  void Start(v1::Decode::Stub& stub, absl::Time deadline) {
    context_.set_deadline(absl::ToChronoTime(deadline));
    stub.async()->Decode(&context_, &request_, this);
    StartRead(&event_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    on_event_(event_);
    StartRead(&event_);
  }

  void OnDone(const grpc::Status& status) override {
    const DecodeDone done = std::move(done_);
    const absl::Status ended = FromGrpc(status);
    delete this;  // before `done`, as in Prefill
    done(ended);
  }

 private:
  grpc::ClientContext context_;
  const v1::DecodeRequest request_;
  v1::DecodeEvent event_;
  const std::function<void(const v1::DecodeEvent&)> on_event_;
  DecodeDone done_;
};

// One after another over the workers first, then over their channels.
template <typename Stub>
Stub& AtTurn(const std::vector<std::unique_ptr<Stub>>& stubs, int64_t turn) {
  PKV_CHECK(!stubs.empty(), "no worker of this role");
  return *stubs[turn % static_cast<int64_t>(stubs.size())];
}

}  // namespace

struct WorkerCalls::Stubs {
  std::vector<std::unique_ptr<v1::Prefill::Stub>> prefill;
  std::vector<std::unique_ptr<v1::Decode::Stub>> decode;
};

WorkerCalls::WorkerCalls(const WorkerCallsOptions& options) : deadline_(options.deadline) {
  PKV_CHECK(options.num_channels >= 1, "num_channels ", options.num_channels);
  auto stubs = std::make_unique<Stubs>();
  const auto connect = [](const std::string& address) {
    grpc::ChannelArguments arguments;
    // Otherwise channels to one address share one connection.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetMaxReceiveMessageSize(-1);
    const std::shared_ptr<grpc::Channel> channel =
        grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
    // Connects now, not with the first request.
    channel->GetState(/*try_to_connect=*/true);
    return channel;
  };
  for (int i = 0; i < options.num_channels; ++i) {
    for (const std::string& address : options.prefill) {
      stubs->prefill.push_back(v1::Prefill::NewStub(connect(address)));
    }
    for (const std::string& address : options.decode) {
      stubs->decode.push_back(v1::Decode::NewStub(connect(address)));
    }
  }
  stubs_ = std::move(stubs);
}

WorkerCalls::~WorkerCalls() = default;

void WorkerCalls::Prefill(int64_t turn, v1::PrefillRequest request, PrefillDone done) {
  auto* call = new PrefillCall;
  call->request = std::move(request);
  call->done = std::move(done);
  call->context.set_deadline(absl::ToChronoTime(absl::Now() + deadline_));
  AtTurn(stubs_->prefill, turn)
      .async()
      ->Prefill(&call->context, &call->request, &call->response, [call](const grpc::Status& ended) {
        const PrefillDone done = std::move(call->done);
        absl::StatusOr<v1::PrefillResponse> response = std::move(call->response);
        if (!ended.ok()) response = FromGrpc(ended);
        // Before `done`, after which the caller may end: gRPC waits for this thread when the last
        // context or stub of a channel goes, so the last one must not go here.
        delete call;
        done(std::move(response));
      });
}

void WorkerCalls::Decode(int64_t turn, v1::DecodeRequest request,
                         std::function<void(const v1::DecodeEvent&)> on_event, DecodeDone done) {
  auto* reader = new DecodeReader(std::move(request), std::move(on_event), std::move(done));
  reader->Start(AtTurn(stubs_->decode, turn), absl::Now() + deadline_);
}

std::future<absl::StatusOr<v1::PrefillResponse>> WorkerCalls::PrefillLater(
    int64_t turn, v1::PrefillRequest request) {
  // Shared, because std::function wants what can be copied.
  auto answer = std::make_shared<std::promise<absl::StatusOr<v1::PrefillResponse>>>();
  std::future<absl::StatusOr<v1::PrefillResponse>> later = answer->get_future();
  Prefill(turn, std::move(request), [answer](absl::StatusOr<v1::PrefillResponse> response) {
    answer->set_value(std::move(response));
  });
  return later;
}

}  // namespace pkv
