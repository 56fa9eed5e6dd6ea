#include "worker/decode/decode_worker.h"

#include <utility>

#include "proto/base/status_macros.h"
#include "proto/base/sync.h"
#include "worker/decode/ticket.h"
#include "worker/engine/tokenizer.h"

namespace pkv {
namespace {

// The text of one request's tokens, as events.
class EventWriter {
 public:
  EventWriter(const Tokenizer* tokenizer, DecodeWorker::Emit emit)
      : decoder_(tokenizer), emit_(std::move(emit)) {}

  absl::Status Token(const SampledToken& token) {
    v1::DecodeEvent event;
    event.mutable_token()->set_token_id(token.token_id);
    event.mutable_token()->set_logprob(token.logprob);
    PKV_ASSIGN_OR_RETURN(*event.mutable_token()->mutable_text(), decoder_.Add(token.token_id));
    return Send(event);
  }
  absl::Status Stats(const v1::DecodeStats& stats) {
    v1::DecodeEvent event;
    *event.mutable_stats() = stats;
    return Send(event);
  }

 private:
  absl::Status Send(const v1::DecodeEvent& event) {
    return emit_(event) ? absl::OkStatus() : absl::CancelledError("the caller went away");
  }

  StreamDecoder decoder_;
  const DecodeWorker::Emit emit_;
};

}  // namespace

DecodeWorker::DecodeWorker(ModelHost* host, CacheCluster* cluster, WorkerMetrics* metrics,
                           const CpuEngineOptions& engine, const BatchOptions& batch)
    : DecodeWorker(host, std::make_unique<CpuBatchEngine>(host, engine), cluster, metrics, batch) {}

DecodeWorker::DecodeWorker(ModelHost* host, std::unique_ptr<BatchEngine> engine,
                           CacheCluster* cluster, WorkerMetrics* metrics, const BatchOptions& batch)
    : host_(*host),
      metrics_(*metrics),
      engine_(std::move(engine)),
      scheduler_(engine_.get(), cluster, metrics, batch) {}

absl::StatusOr<uint64_t> DecodeWorker::Start(const v1::DecodeRequest& request, Emit emit,
                                             Done done) {
  PKV_ASSIGN_OR_RETURN(BatchRequest read, ReadTicket(request, host_));
  // shared_ptr: of both callbacks.
  const auto writer = std::make_shared<EventWriter>(&host_.tokenizer(), std::move(emit));
  read.on_token = [writer](const SampledToken& token) { return writer->Token(token); };
  read.on_end = [this, writer, done = std::move(done)](const BatchOutcome& outcome) {
    absl::Status status = outcome.status;
    if (status.ok()) {
      metrics_.CountDecode(outcome.stats, outcome.num_generated);
      status = writer->Stats(outcome.stats);
    }
    done(status);
  };
  return scheduler_.Submit(std::move(read));
}

absl::Status DecodeWorker::Decode(const v1::DecodeRequest& request, const Emit& emit) {
  Mutex mu;
  CondVar changed;
  bool ended = false;
  absl::Status result;
  PKV_RETURN_IF_ERROR(Start(request, emit, [&](const absl::Status& status) {
                        MutexLock lock(&mu);
                        result = status;
                        ended = true;
                        // Under the lock: what this refers to ends when the waiting thread has it.
                        changed.SignalAll();
                      }).status());
  MutexLock lock(&mu);
  while (!ended) changed.Wait(&mu);
  return result;
}

}  // namespace pkv
