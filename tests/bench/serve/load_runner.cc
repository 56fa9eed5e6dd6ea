#include "tests/bench/serve/load_runner.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <memory>
#include <queue>
#include <utility>

#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/sync.h"
#include "tests/bench/serve/random_stream.h"

namespace pkv {
namespace {

// A request under way. Touched by one thread at a time: the one that sends it, then the callback of
// its only call.
struct UnderWay {
  LoadItem item;
  RequestRecord record;
};

// To be sent again.
struct Retry {
  double due_s = 0;
  std::unique_ptr<UnderWay> request;
  bool operator>(const Retry& other) const { return due_s > other.due_s; }
};

// One load from its first request to its last. The caller's thread sends, gRPC's report.
// Thread-safe.
class Load {
 public:
  Load(const LoadOptions& options, WorkerCalls& calls) : options_(options), calls_(calls) {
    PKV_CHECK(options.concurrency >= 1 && options.concurrency <= kMaxConcurrency, "concurrency ",
              options.concurrency);
  }

  LoadResult Run(const std::function<std::optional<LoadItem>()>& next);

 private:
  // What the sending thread does next: send one of these again, or its item, or nothing any more.
  struct Step {
    std::unique_ptr<UnderWay> retry = nullptr;
    bool sends_item = false;
    double intended_s = 0;
  };

  double Now() const { return absl::ToDoubleSeconds(Clock::Real()->MonotonicNow() - start_); }
  // Waits for the next step; none: all has ended. Drops an item for which the time is over.
  Step WaitForStep(std::optional<LoadItem>& item) ABSL_LOCKS_EXCLUDED(mu_);
  void Send(std::unique_ptr<UnderWay> request);
  void SendDecode(std::unique_ptr<UnderWay> request);
  // The last call of a request, or of one of its attempts.
  void End(std::unique_ptr<UnderWay> request, Stage stage, const absl::Status& status)
      ABSL_LOCKS_EXCLUDED(mu_);

  const LoadOptions options_;
  WorkerCalls& calls_;
  const absl::Time start_ = Clock::Real()->MonotonicNow();

  Mutex mu_;
  CondVar changed_;
  std::vector<RequestRecord> ended_ ABSL_GUARDED_BY(mu_);
  std::vector<Retry> retries_ ABSL_GUARDED_BY(mu_);  // a heap, the next due first
  // Closed loop: since when a slot has been free, one entry for each slot used before.
  std::deque<double> free_since_ ABSL_GUARDED_BY(mu_);
  int under_way_ ABSL_GUARDED_BY(mu_) = 0;  // those that wait for a retry included
  int max_under_way_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t num_held_back_ ABSL_GUARDED_BY(mu_) = 0, last_held_back_ ABSL_GUARDED_BY(mu_) = -1;
  RandomStream random_ ABSL_GUARDED_BY(mu_){1};
};

LoadResult Load::Run(const std::function<std::optional<LoadItem>()>& next) {
  LoadResult result;
  std::optional<LoadItem> item = next();
  while (true) {
    Step step = WaitForStep(item);
    if (step.retry != nullptr) {
      Send(std::move(step.retry));
      continue;
    }
    if (!step.sends_item) break;
    auto request = std::make_unique<UnderWay>();
    request->item = *std::move(item);
    request->record.index = request->item.index;
    request->record.asked_tokens = static_cast<int>(request->item.decode.sampling().max_tokens());
    request->record.prompt_cut = request->item.prompt_cut;
    request->record.num_shared_tokens = request->item.num_shared_tokens;
    request->record.intended_s = step.intended_s;
    result.sending_s = request->record.sent_s = Now();
    Send(std::move(request));
    item = next();  // while this one is on its way
  }
  MutexLock lock(&mu_);
  result.records = std::move(ended_);
  result.max_under_way = max_under_way_;
  result.num_held_back = num_held_back_;
  for (const RequestRecord& record : result.records) {
    result.ended_s = std::max(result.ended_s, record.ended_s);
  }
  std::sort(result.records.begin(), result.records.end(),
            [](const RequestRecord& a, const RequestRecord& b) { return a.index < b.index; });
  return result;
}

Load::Step Load::WaitForStep(std::optional<LoadItem>& item) {
  MutexLock lock(&mu_);
  while (true) {
    const double now = Now();
    const double over_s = absl::ToDoubleSeconds(options_.duration);
    if (item.has_value() && (now > over_s || (options_.open_loop && item->arrival_s > over_s))) {
      item.reset();
    }
    if (!retries_.empty() && retries_.front().due_s <= now) {
      std::pop_heap(retries_.begin(), retries_.end(), std::greater<>());
      Step step = {.retry = std::move(retries_.back().request)};
      retries_.pop_back();
      return step;
    }
    const bool arrived = item.has_value() && (!options_.open_loop || item->arrival_s <= now);
    if (arrived && under_way_ < options_.concurrency) {
      Step step = {.sends_item = true};
      if (options_.open_loop) {
        step.intended_s = item->arrival_s;
      } else if (!free_since_.empty()) {
        step.intended_s = free_since_.front();
        free_since_.pop_front();
      }
      max_under_way_ = std::max(max_under_way_, ++under_way_);
      return step;
    }
    if (arrived && options_.open_loop && last_held_back_ != item->index) {
      last_held_back_ = item->index;
      ++num_held_back_;
    }
    if (!item.has_value() && under_way_ == 0) return {};
    double until = absl::ToDoubleSeconds(absl::InfiniteDuration());
    if (!retries_.empty()) until = retries_.front().due_s;
    if (item.has_value() && !arrived) until = std::min(until, item->arrival_s);
    changed_.WaitWithTimeout(&mu_, absl::Seconds(until - now));
  }
}

void Load::Send(std::unique_ptr<UnderWay> request) {
  if (!request->item.prefill.has_value() || request->record.has_prefill_stats) {
    if (request->record.prefilled_s < 0) request->record.prefilled_s = Now();
    SendDecode(std::move(request));
    return;
  }
  // The callback owns the request; std::function wants what can be copied.
  UnderWay* raw = request.release();
  calls_.Prefill(raw->record.index, *raw->item.prefill,
                 [this, raw](absl::StatusOr<v1::PrefillResponse> response) {
                   std::unique_ptr<UnderWay> owned(raw);
                   if (!response.ok()) {
                     End(std::move(owned), Stage::kPrefill, response.status());
                     return;
                   }
                   owned->record.prefilled_s = Now();
                   owned->record.has_prefill_stats = true;
                   owned->record.prefill = response->stats();
                   *owned->item.decode.mutable_ticket() = std::move(*response->mutable_ticket());
                   SendDecode(std::move(owned));
                 });
}

void Load::SendDecode(std::unique_ptr<UnderWay> request) {
  UnderWay* raw = request.release();
  calls_.Decode(
      raw->record.index, raw->item.decode,
      [this, raw](const v1::DecodeEvent& event) {
        if (event.has_token()) raw->record.token_s.push_back(Now());
        if (!event.has_stats()) return;
        raw->record.has_decode_stats = true;
        raw->record.decode = event.stats();
      },
      [this, raw](const absl::Status& status) {
        End(std::unique_ptr<UnderWay>(raw), Stage::kDecode, status);
      });
}

void Load::End(std::unique_ptr<UnderWay> request, Stage stage, const absl::Status& status) {
  RequestRecord& record = request->record;
  const double now = Now();
  MutexLock lock(&mu_);
  if (absl::IsResourceExhausted(status)) {
    ++record.num_refusals;
    // After a token, a second attempt would count it twice.
    if (record.num_retries < options_.num_retries_max && record.token_s.empty()) {
      const double whole =
          std::min(absl::ToDoubleSeconds(options_.first_backoff) * std::exp2(record.num_retries++),
                   absl::ToDoubleSeconds(options_.max_backoff));
      retries_.push_back({now + whole * (1 - random_.Uniform() / 2), std::move(request)});
      std::push_heap(retries_.begin(), retries_.end(), std::greater<>());
      changed_.Signal();
      return;
    }
  }
  record.ended_s = now;
  record.status = status;
  record.failed_stage = stage;
  ended_.push_back(std::move(record));
  --under_way_;
  if (!options_.open_loop) free_since_.push_back(now);
  // Under the lock: once it is free, this load may be gone.
  changed_.Signal();
}

}  // namespace

LoadResult RunLoad(const LoadOptions& options, WorkerCalls& calls,
                   const std::function<std::optional<LoadItem>()>& next) {
  return Load(options, calls).Run(next);
}

}  // namespace pkv
