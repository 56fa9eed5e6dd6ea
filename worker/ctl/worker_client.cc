#include "worker/ctl/worker_client.h"

#include <grpcpp/grpcpp.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "pkv/v1/worker_service.grpc.pb.h"
#include "proto/base/status_macros.h"
#include "proto/transport/convert.h"

namespace pkv {
namespace {

absl::Status Annotate(const absl::Status& status, const char* worker) {
  if (status.ok()) return status;
  return {status.code(), absl::StrCat(worker, " worker: ", status.message())};
}

}  // namespace

struct WorkerClient::Stubs {
  std::unique_ptr<v1::Prefill::Stub> prefill;
  std::unique_ptr<v1::Decode::Stub> decode;
};

WorkerClient::WorkerClient(const std::string& prefill_address, const std::string& decode_address,
                           absl::Duration deadline)
    : stubs_(std::make_unique<Stubs>()), deadline_(deadline) {
  const auto connect = [](const std::string& address) {
    return grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
  };
  stubs_->prefill = v1::Prefill::NewStub(connect(prefill_address));
  stubs_->decode = v1::Decode::NewStub(connect(decode_address));
}

WorkerClient::~WorkerClient() = default;

absl::StatusOr<v1::PrefillResponse> WorkerClient::Prefill(const v1::PrefillRequest& request) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + deadline_));
  v1::PrefillResponse response;
  PKV_RETURN_IF_ERROR(
      Annotate(FromGrpc(stubs_->prefill->Prefill(&context, request, &response)), "prefill"));
  return response;
}

absl::Status WorkerClient::Decode(const v1::DecodeRequest& request,
                                  const std::function<void(const v1::DecodeEvent&)>& on_event) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + deadline_));
  const auto reader = stubs_->decode->Decode(&context, request);
  v1::DecodeEvent event;
  while (reader->Read(&event)) on_event(event);
  return Annotate(FromGrpc(reader->Finish()), "decode");
}

absl::StatusOr<Generation> WorkerClient::Generate(
    const v1::PrefillRequest& prefill, v1::DecodeRequest decode,
    const std::function<void(const std::string&)>& on_text) {
  Generation generation;
  PKV_ASSIGN_OR_RETURN(generation.prefill, Prefill(prefill));
  *decode.mutable_ticket() = generation.prefill.ticket();
  PKV_RETURN_IF_ERROR(Decode(decode, [&](const v1::DecodeEvent& event) {
    if (event.has_stats()) generation.decode = event.stats();
    if (!event.has_token()) return;
    generation.token_ids.push_back(event.token().token_id());
    generation.text += event.token().text();
    if (on_text) on_text(event.token().text());
  }));
  return generation;
}

}  // namespace pkv
