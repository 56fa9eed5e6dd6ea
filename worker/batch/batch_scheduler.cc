#include "worker/batch/batch_scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

absl::Status CallerWentAway() { return absl::CancelledError("the caller went away"); }

absl::Status DrainingError() { return absl::UnavailableError("this worker is draining"); }

}  // namespace

BatchScheduler::BatchScheduler(BatchEngine* engine, CacheCluster* cluster, WorkerMetrics* metrics,
                               const BatchOptions& options)
    : engine_(*engine),
      cluster_(*cluster),
      worker_metrics_(*metrics),
      options_(options),
      limits_(engine->limits()),
      metrics_(*metrics->registry()),
      pool_(limits_.num_pages),
      max_waiting_(options.max_waiting),
      fetch_threads_(options.num_fetch_threads) {
  PKV_CHECK(limits_.num_slots > 0, limits_.num_slots);
  {
    MutexLock lock(&mu_);
    // Slot 0 is taken first.
    for (int slot = limits_.num_slots; slot-- > 0;) free_slots_.push_back(slot);
    UpdateMetrics();
  }
  step_thread_ = std::thread([this] { RunSteps(); });
}

BatchScheduler::~BatchScheduler() {
  Drain();
  std::vector<uint64_t> ids;
  {
    MutexLock lock(&mu_);
    for (const auto& [id, run] : runs_) ids.push_back(id);
  }
  for (const uint64_t id : ids) Cancel(id);
  {
    MutexLock lock(&mu_);
    while (!runs_.empty()) run_ended_.Wait(&mu_);
    stopping_ = true;
    step_work_.SignalAll();
  }
  step_thread_.join();
}

absl::Status BatchScheduler::CheckRequest(const BatchRequest& request) {
  absl::Status status = Sampler::Make(request.sampling).status();
  status.Update(engine_.CheckVariant(request.params));
  status.Update(CheckFits(request, limits_));
  if (!status.ok()) {
    metrics_.CountRefusal(absl::IsResourceExhausted(status) ? Refusal::kTooLarge
                                                            : Refusal::kInvalid);
  }
  return status;
}

absl::StatusOr<uint64_t> BatchScheduler::Submit(BatchRequest request) {
  PKV_CHECK(!request.tokens.empty() && request.max_tokens > 0, request.tokens.size(), " ",
            request.max_tokens);
  PKV_RETURN_IF_ERROR(CheckRequest(request));
  uint64_t id = 0;
  {
    MutexLock lock(&mu_);
    id = next_id_++;
  }
  PKV_RETURN_IF_ERROR(Enqueue(std::make_shared<SequenceRun>(id, std::move(request))));
  return id;
}

absl::Status BatchScheduler::Enqueue(const Run& run) {
  MutexLock lock(&mu_);
  if (!failure_.ok()) {
    metrics_.CountRefusal(Refusal::kFailed);
    return failure_;
  }
  if (draining_) {
    metrics_.CountRefusal(Refusal::kDraining);
    return DrainingError();
  }
  waiting_.push_back(run);
  AdmitWaiting();
  const size_t num_waiting = waiting_.size();
  if (num_waiting > static_cast<size_t>(max_waiting_) && waiting_.back() == run) {
    waiting_.pop_back();
    metrics_.CountRefusal(Refusal::kQueueFull);
    UpdateMetrics();
    return absl::ResourceExhaustedError(absl::StrCat(
        limits_.num_slots - free_slots_.size(), " of ", limits_.num_slots, " slots are taken and ",
        num_waiting - 1, " of ", max_waiting_, " requests are waiting already"));
  }
  runs_.emplace(run->id, run);
  return absl::OkStatus();
}

void BatchScheduler::AdmitWaiting() {
  while (!waiting_.empty() && failure_.ok() && PlaceRun(*waiting_.front())) {
    ++num_fetching_;
    fetch_threads_.Schedule([this, run = std::move(waiting_.front())] { StartRun(run); });
    waiting_.pop_front();
  }
  UpdateMetrics();
}

// False when there is no room.
bool BatchScheduler::PlaceRun(SequenceRun& run) {
  if (free_slots_.empty()) return false;
  const BatchRequest& request = run.request;
  const std::span<const ObjectKey> keys = request.keys;
  const std::span<const ObjectKey> tables = keys.first(request.num_tables);
  std::vector<std::optional<PagePool::Resident>> resident(request.num_blocks);
  std::vector<int32_t> shared;
  const bool shares = limits_.shares_pages && !run.computes && !run.fetches_all;
  for (int i = 0; shares && i < request.num_blocks; ++i) {
    resident[i] = pool_.Find(keys[request.num_tables + i]);
    if (!resident[i].has_value()) continue;
    // Another prefill may have stored the block again, against a table of its own.
    const Digest& table = resident[i]->header.table;
    const bool fits =
        table.IsZero() ||
        std::any_of(tables.begin(), tables.end(), [&](const auto& key) { return key.id == table; });
    if (fits) {
      shared.push_back(resident[i]->page);
    } else {
      resident[i].reset();
    }
  }
  const std::optional<std::vector<int32_t>> fresh =
      pool_.Acquire(shared, run.max_pages - static_cast<int>(shared.size()));
  if (!fresh.has_value()) return false;
  run.Place(free_slots_.back(), std::move(resident), *fresh);
  free_slots_.pop_back();
  if (!run.computes && !run.fetches_all) {
    run.stats.set_queue_seconds(run.since_request.Seconds());
    metrics_.ObserveQueueWait(run.stats.queue_seconds());
  }
  return true;
}

// The slot is released already.
void BatchScheduler::TakePlace(SequenceRun& run) {
  pool_.Release(run.pages);
  run.pages.clear();
  free_slots_.push_back(run.slot);
  run.slot = -1;
}

void BatchScheduler::UpdateMetrics() {
  const int with_slot = limits_.num_slots - static_cast<int>(free_slots_.size());
  metrics_.SetSequences(static_cast<int>(waiting_.size()), num_fetching_,
                        with_slot - num_fetching_);
  metrics_.SetPages(pool_.counts());
  metrics_.CountEvictedPages(pool_.num_evictions() - evictions_counted_);
  metrics_.CountSharedPages(pool_.num_shared() - shared_counted_);
  evictions_counted_ = pool_.num_evictions();
  shared_counted_ = pool_.num_shared();
}

void BatchScheduler::StartRun(const Run& run) {
  StepOutput output;
  absl::Status status = StopReason(*run);
  if (status.ok()) {
    status = run->computes ? ComputePrompt(*run, output) : FetchPrefix(*run, output);
    if (status.ok()) status = output.status;
  }
  if (!status.ok()) {
    if (const absl::Status stop = StopReason(*run); !stop.ok()) {
      status = stop;
    } else if (absl::IsInternal(status) && (run->computes || !run->watch.failed())) {
      FailEngine(status);
    } else if (!run->computes && WaitAgain(run, status)) {
      return;
    }
  }
  if (!status.ok()) {
    {
      MutexLock lock(&mu_);
      --num_fetching_;
    }
    Leave(run, status);
    return;
  }
  if (!run->computes) SharePages(*run);
  run->num_cached = run->num_prompt_tokens;
  run->num_blocks = run->request.num_blocks;
  run->TakeToken(output);
  MutexLock lock(&mu_);
  --num_fetching_;
  ready_.push_back(run);
  step_work_.Signal();
  UpdateMetrics();
}

absl::Status BatchScheduler::FetchPrefix(SequenceRun& run, StepOutput& output) {
  const BatchRequest& request = run.request;
  run.cache = &cluster_.ServerFor(run.Chain(), request.cache_server);
  const std::vector<ObjectKey> keys = run.FetchedKeys();
  EnginePrefix prefix = run.Prefix();
  GetStream* stream = nullptr;  // the engine's until First() has returned
  std::function<void()> on_first_layer;
  if (!keys.empty()) {
    prefix.stream = run.watch.Watch(limits_.takes_device_frames
                                        ? run.cache->StartDeviceGet(keys, request.direct_server)
                                        : run.cache->StartGet(keys));
    stream = prefix.stream.get();
    on_first_layer = [&run] { run.stats.set_first_layer_seconds(run.since_request.Seconds()); };
  }
  const auto num_resident = std::count_if(run.resident.begin(), run.resident.end(),
                                          [](const auto& block) { return block.has_value(); });
  PKV_RETURN_IF_ERROR(engine_.Attach(run.slot, request.params, std::move(prefix)));
  if (stream != nullptr && !options_.layer_streaming) PKV_RETURN_IF_ERROR(stream->WaitForAll());
  PKV_RETURN_IF_ERROR(engine_.First(run.NextStep(), on_first_layer, output));
  if (keys.empty()) return absl::OkStatus();
  const absl::Duration since_arrival = Clock::Real()->MonotonicNow() - run.watch.last_arrival();
  run.stats.set_fetch_seconds(
      std::max(run.stats.first_layer_seconds(),
               run.since_request.Seconds() - absl::ToDoubleSeconds(since_arrival)));
  run.stats.set_fetched_bytes(engine_.received_bytes(run.slot));
  run.stats.set_resident_blocks(static_cast<uint32_t>(num_resident));
  return absl::OkStatus();
}

// Computes what the keys promised: same tokens, same parameters.
absl::Status BatchScheduler::ComputePrompt(SequenceRun& run, StepOutput& output) {
  const BatchRequest& request = run.request;
  run.made.clear();
  // What is put back starts anew with the first block: where it is looked for now.
  run.cache = &cluster_.ServerFor(run.Chain(), /*hint=*/"");
  PKV_RETURN_IF_ERROR(engine_.Compute(
      run.slot, request.params, run.cached_prompt(), std::span(run.pages).first(request.num_blocks),
      [&run] { return run.cancelled.load(); }, request.put_back ? &run.made : nullptr));
  run.stats.set_recomputed_tokens(static_cast<uint32_t>(run.cached_prompt().size()));
  return engine_.First(run.NextStep(), nullptr, output);
}

// Lets others find the blocks that this run fetched.
void BatchScheduler::SharePages(const SequenceRun& run) {
  if (!limits_.shares_pages || run.request.num_blocks == 0) return;
  const std::vector<ObjectHeader> headers = engine_.block_headers(run.slot);
  MutexLock lock(&mu_);
  for (int i = 0; i < run.request.num_blocks; ++i) {
    const bool appends = (headers[i].flags & (kFlagAppendsK | kFlagAppendsV)) != 0;
    if (!run.resident[i].has_value() && !appends) pool_.Publish(run.pages[i], headers[i]);
  }
}

// The cache did not deliver: what pages held may not belong to what it has now, or the prompt has
// to be computed. False when the request does not want that.
bool BatchScheduler::WaitAgain(const Run& run, const absl::Status& reason) {
  const bool had_resident = std::any_of(run->resident.begin(), run->resident.end(),
                                        [](const auto& block) { return block.has_value(); });
  const bool fetches_all = had_resident && absl::IsFailedPrecondition(reason);
  if (!fetches_all && run->request.refuse_recompute) return false;
  if (!fetches_all) {
    Log(LogLevel::kWarning, "cache did not deliver, computing the prompt",
        {{"reason", reason.ToString()}, {"tokens", run->num_prompt_tokens}});
    worker_metrics_.CountRecompute(reason);
    run->stats.set_recompute_reason(reason.ToString());
  }
  engine_.Release(run->slot);
  absl::Status stop;
  {
    MutexLock lock(&mu_);
    run->computes = !fetches_all;
    run->fetches_all = fetches_all;
    --num_fetching_;
    TakePlace(*run);
    stop = run->cancelled ? CallerWentAway() : failure_;
    if (stop.ok()) waiting_.push_front(run);
    AdmitWaiting();
  }
  if (!stop.ok()) End(run, stop);
  return true;
}

void BatchScheduler::RunSteps() {
  std::vector<Run> running;
  while (true) {
    std::vector<Run> joined;
    {
      MutexLock lock(&mu_);
      while (!stopping_ && ready_.empty() && running.empty()) step_work_.Wait(&mu_);
      if (stopping_) return;
      joined.swap(ready_);
    }
    FlushDue(joined);
    running.insert(running.end(), joined.begin(), joined.end());
    Retire(running);
    if (running.empty()) continue;
    Step(running);
    Retire(running);
  }
}

void BatchScheduler::Step(std::vector<Run>& running) {
  std::vector<StepInput> inputs;
  for (const Run& run : running) inputs.push_back(run->NextStep());
  std::vector<StepOutput> outputs(inputs.size());
  const Stopwatch stopwatch;
  if (const absl::Status status = engine_.Step(inputs, outputs); !status.ok()) {
    FailEngine(status);
    return;
  }
  metrics_.ObserveStep(static_cast<int>(inputs.size()), stopwatch.Seconds());
  for (size_t i = 0; i < running.size(); ++i) {
    if (outputs[i].status.ok()) {
      ++running[i]->num_cached;
    } else {
      running[i]->ended = outputs[i].status;
    }
  }
  FlushDue(running);
  for (size_t i = 0; i < running.size(); ++i) {
    SequenceRun& run = *running[i];
    if (run.ended.has_value()) continue;
    metrics_.ObserveInterToken(run.since_token.Seconds());
    run.TakeToken(outputs[i]);
  }
}

// Turns tokens that have left a window into a block, also after the last step: the block may be put
// back.
void BatchScheduler::FlushDue(std::span<const Run> runs) {
  std::vector<SequenceRun*> due;
  std::vector<FlushInput> inputs;
  for (const Run& run : runs) {
    if (run->ended.has_value() && !run->ended->ok()) continue;
    if (!run->IsFlushDue()) continue;
    PKV_CHECK(run->num_blocks < run->max_pages, run->num_blocks, " of ", run->max_pages);
    due.push_back(run.get());
    inputs.push_back({run->slot, run->pages[run->num_blocks],
                      std::span<const int32_t>(run->tokens).first(run->num_cached),
                      run->request.put_back ? &run->made : nullptr});
  }
  if (due.empty()) return;
  const absl::Status status = engine_.Flush(inputs);
  if (absl::IsInternal(status)) FailEngine(status);
  for (SequenceRun* run : due) {
    if (status.ok()) {
      ++run->num_blocks;
      run->stats.set_flushed_blocks(run->stats.flushed_blocks() + 1);
    } else {
      run->ended = status;
    }
  }
}

// Takes those that have ended out of `running`.
void BatchScheduler::Retire(std::vector<Run>& running) {
  const auto ended = [this](const Run& run) {
    if (!run->ended.has_value()) {
      if (const absl::Status reason = StopReason(*run); !reason.ok()) run->ended = reason;
    }
    if (!run->ended.has_value()) return false;
    Leave(run, *run->ended);
    return true;
  };
  running.erase(std::remove_if(running.begin(), running.end(), ended), running.end());
}

absl::Status BatchScheduler::StopReason(const SequenceRun& run) const {
  if (run.cancelled) return CallerWentAway();
  MutexLock lock(&mu_);
  return failure_;
}

void BatchScheduler::FailEngine(const absl::Status& status) {
  std::deque<Run> waiting;
  std::vector<Run> others;
  {
    MutexLock lock(&mu_);
    if (!failure_.ok()) return;
    failure_ = status;
    waiting.swap(waiting_);
    for (const auto& [id, run] : runs_) others.push_back(run);
    UpdateMetrics();
  }
  Log(LogLevel::kError, "the engine failed", {{"reason", status.ToString()}});
  // So that its fetches end: nothing is computed from them any more.
  for (const Run& run : others) run->watch.Cancel();
  for (const Run& run : waiting) End(run, status);
  if (options_.on_engine_failure) options_.on_engine_failure(status);
}

// Gives the place of a run to those that wait, then ends it, after what it made is put back.
void BatchScheduler::Leave(const Run& run, const absl::Status& status) {
  engine_.Release(run->slot);
  {
    MutexLock lock(&mu_);
    TakePlace(*run);
    AdmitWaiting();
  }
  if (!status.ok() || run->made.empty()) {
    End(run, status);
    return;
  }
  put_back_.Put(*run->cache, std::move(run->made), [this, run](int num_blocks) {
    run->stats.set_put_back_blocks(static_cast<uint32_t>(num_blocks));
    End(run, absl::OkStatus());
  });
}

void BatchScheduler::End(const Run& run, const absl::Status& status) {
  const int num_tokens = static_cast<int>(run->tokens.size());
  run->request.on_end({status, run->stats, num_tokens - run->num_prompt_tokens});
  MutexLock lock(&mu_);
  runs_.erase(run->id);
  // Under the lock: the destructor may run as soon as the last one is gone.
  run_ended_.SignalAll();
}

void BatchScheduler::Cancel(uint64_t id) {
  Run run;
  bool was_waiting = false;
  {
    MutexLock lock(&mu_);
    const auto it = runs_.find(id);
    if (it == runs_.end()) return;
    run = it->second;
    run->cancelled = true;
    const auto place = std::find(waiting_.begin(), waiting_.end(), run);
    was_waiting = place != waiting_.end();
    if (was_waiting) {
      waiting_.erase(place);
      AdmitWaiting();
    }
  }
  run->watch.Cancel();
  if (was_waiting) End(run, CallerWentAway());
}

void BatchScheduler::SetMaxWaiting(int max_waiting) {
  MutexLock lock(&mu_);
  max_waiting_ = max_waiting;
}

void BatchScheduler::Drain() {
  std::deque<Run> refused;
  {
    MutexLock lock(&mu_);
    draining_ = true;
    std::deque<Run> kept;
    for (Run& run : waiting_) {
      // One that had a place already goes on.
      const bool began = run->computes || run->fetches_all;
      (began ? kept : refused).push_back(std::move(run));
    }
    waiting_.swap(kept);
    UpdateMetrics();
  }
  for (const Run& run : refused) {
    metrics_.CountRefusal(Refusal::kDraining);
    End(run, DrainingError());
  }
}

PagePool::Counts BatchScheduler::page_counts() const {
  MutexLock lock(&mu_);
  return pool_.counts();
}

}  // namespace pkv
