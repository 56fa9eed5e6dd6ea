#include "kvstore/store/pager.h"

#include <algorithm>
#include <utility>

namespace pkv {
namespace {

constexpr int kFailuresBeforeRest = 3;

}  // namespace

Pager::Pager(const Options& options)
    : options_(options), reading_since_(options.num_threads, absl::InfiniteFuture()) {
  for (int i = 0; i < options_.num_threads; ++i) {
    threads_.emplace_back([this, i] { RunReader(static_cast<size_t>(i)); });
  }
  threads_.emplace_back([this] { RunTimekeeper(); });
}

Pager::~Pager() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    work_ready_.SignalAll();
    deadlines_changed_.SignalAll();
  }
  for (std::thread& thread : threads_) thread.join();
  std::vector<RequestPtr> left;
  {
    MutexLock lock(&mu_);
    for (const auto& [deadline, request] : deadlines_) left.push_back(request);
    deadlines_.clear();
    waiting_.clear();
    reads_.clear();
  }
  for (const RequestPtr& request : left) End(request);
}

bool Pager::IsNeeded(std::span<const ObjectKey> keys) const {
  if (options_.log->stats().num_objects == 0) return false;
  const PageInPlan plan = options_.store->PlanPageIn(keys);
  return !plan.tables.empty() || !plan.others.empty();
}

void Pager::Fetch(std::span<const ObjectKey> keys, absl::Duration patience, Done done) {
  auto request = std::make_shared<Request>();
  request->done = std::move(done);
  // Pinned first, so that room for the others is not made of them.
  for (Lease& lease : options_.store->FindAll(keys, Use::kNone)) {
    if (lease) request->result.held.push_back(std::move(lease));
  }
  PageInPlan plan = options_.store->PlanPageIn(keys);
  request->others = std::move(plan.others);
  for (Lease& lease : plan.held) request->result.held.push_back(std::move(lease));
  request->deadline = options_.clock->MonotonicNow() + patience;
  bool has_ended;
  {
    MutexLock lock(&mu_);
    deadlines_.emplace(request->deadline, request);
    if (!stopping_) QueueLocked(request, plan.tables);
    has_ended = AdvanceLocked(request);
    deadlines_changed_.Signal();
  }
  if (has_ended) End(request);
}

Pager::Result Pager::FetchAndWait(std::span<const ObjectKey> keys, absl::Duration patience) {
  if (!IsNeeded(keys)) return {};
  // shared_ptr: of this thread and of the one that calls back, which may be the slower to leave.
  struct Answer {
    Mutex mu;
    CondVar came;
    bool is_there ABSL_GUARDED_BY(mu) = false;
    Result result ABSL_GUARDED_BY(mu);
  };
  const auto answer = std::make_shared<Answer>();
  Fetch(keys, patience, [answer](Result result) {
    MutexLock lock(&answer->mu);
    answer->result = std::move(result);
    answer->is_there = true;
    answer->came.Signal();
  });
  MutexLock lock(&answer->mu);
  while (!answer->is_there) answer->came.Wait(&answer->mu);
  return std::move(answer->result);
}

void Pager::QueueLocked(const RequestPtr& request, std::span<const DiskCopy> copies) {
  for (const DiskCopy& copy : copies) {
    std::shared_ptr<Read>& read = reads_[copy.key];
    if (read == nullptr) {
      if (waiting_.size() >= options_.max_waiting) {
        reads_.erase(copy.key);
        continue;
      }
      read = std::make_shared<Read>();
      read->copy = copy;
      waiting_.push_back(read);
    }
    read->waiters.push_back({request, copy.is_implied});
    ++request->num_missing;
  }
  work_ready_.SignalAll();
}

bool Pager::AdvanceLocked(const RequestPtr& request) {
  if (request->ended || request->num_missing > 0) return false;
  if (!request->others.empty() && !stopping_) {
    QueueLocked(request, std::exchange(request->others, {}));
    if (request->num_missing > 0) return false;
  }
  request->ended = true;
  deadlines_.erase({request->deadline, request});
  return true;
}

void Pager::End(const RequestPtr& request) {
  const Done done = std::exchange(request->done, nullptr);
  done(std::move(request->result));
}

void Pager::RunReader(size_t index) {
  for (;;) {
    std::shared_ptr<Read> read;
    {
      MutexLock lock(&mu_);
      reading_since_[index] = absl::InfiniteFuture();
      while (!stopping_ && waiting_.empty()) work_ready_.Wait(&mu_);
      if (stopping_) return;
      read = std::move(waiting_.front());
      waiting_.pop_front();
      // Nobody may want it any more.
      std::erase_if(read->waiters,
                    [](const Read::Waiter& waiter) { return waiter.request->ended; });
      if (read->waiters.empty()) {
        reads_.erase(read->copy.key);
        continue;
      }
      reading_since_[index] = options_.clock->MonotonicNow();
      deadlines_changed_.Signal();
    }
    absl::StatusOr<Lease> lease = ReadOne(read->copy);
    Deliver(*read, std::move(lease));
  }
}

absl::StatusOr<Lease> Pager::ReadOne(const DiskCopy& copy) {
  const LogRecord& record = copy.record;
  absl::StatusOr<Reservation> reservation =
      options_.store->Reserve({copy.key, record.num_layers, record.frame_bytes}, Room::kOfDemoted);
  if (!reservation.ok()) {
    // Stored meanwhile, or there is no room.
    if (!absl::IsAlreadyExists(reservation.status())) return reservation.status();
    return options_.store->Find(copy.key, Use::kNone);
  }
  const absl::Time begin = options_.clock->MonotonicNow();
  const absl::Status status = options_.log->Read(record, reservation->units());
  NoteRead(status, options_.clock->MonotonicNow() - begin);
  if (!status.ok()) {
    // A place that cannot be read is as good as damaged.
    if (options_.log->Holds(copy.key, record)) options_.log->Erase(copy.key);
    return status;
  }
  return options_.store->PublishFromDisk(*std::move(reservation), record);
}

void Pager::NoteRead(const absl::Status& status, absl::Duration duration) {
  bool has_failed_often;
  {
    MutexLock lock(&mu_);
    // NotFound: the log has dropped it, which is no failure.
    num_failed_in_a_row_ = status.ok() || absl::IsNotFound(status) ? 0 : num_failed_in_a_row_ + 1;
    has_failed_often = num_failed_in_a_row_ >= kFailuresBeforeRest;
    if (has_failed_often) num_failed_in_a_row_ = 0;
  }
  if (has_failed_often || duration > kSlowRead) options_.log->SuspendReads(kDiskRest);
}

void Pager::Deliver(Read& read, absl::StatusOr<Lease> lease) {
  std::vector<RequestPtr> ended;
  for (;;) {
    // Each has a pin of its own: the first the one that was made, the others one more.
    Lease pin;
    if (lease.ok() && *lease) pin = options_.store->Find(read.copy.key, Use::kNone);
    MutexLock lock(&mu_);
    if (read.waiters.empty()) {
      reads_.erase(read.copy.key);
      break;
    }
    const Read::Waiter waiter = std::move(read.waiters.back());
    read.waiters.pop_back();
    --waiter.request->num_missing;
    if (waiter.request->ended) continue;
    if (pin) {
      waiter.request->result.held.push_back(std::move(pin));
      if (!waiter.is_implied) ++waiter.request->result.num_paged_in;
    }
    if (AdvanceLocked(waiter.request)) ended.push_back(waiter.request);
  }
  for (const RequestPtr& request : ended) End(request);
}

int Pager::EndOverdue() {
  const absl::Time now = options_.clock->MonotonicNow();
  std::vector<RequestPtr> ended;
  bool is_slow;
  {
    MutexLock lock(&mu_);
    while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
      const RequestPtr request = deadlines_.begin()->second;
      deadlines_.erase(deadlines_.begin());
      request->ended = true;
      request->others.clear();
      ended.push_back(request);
    }
    if (!ended.empty()) DropEndedLocked();
    is_slow = std::ranges::any_of(reading_since_,
                                  [now](absl::Time since) { return now - since > kSlowRead; });
    if (is_slow) next_renewal_ = now + kDiskRest / 2;
  }
  if (is_slow) options_.log->SuspendReads(kDiskRest);
  for (const RequestPtr& request : ended) End(request);
  return static_cast<int>(ended.size());
}

void Pager::DropEndedLocked() {
  for (const auto& [key, read] : reads_) {
    std::erase_if(read->waiters, [](const Read::Waiter& waiter) { return waiter.request->ended; });
  }
  // Those under way stay until their threads are back.
  std::erase_if(waiting_, [this](const std::shared_ptr<Read>& read) {
    mu_.AssertHeld();
    return read->waiters.empty() && reads_.erase(read->copy.key) > 0;
  });
}

absl::Time Pager::NextLookLocked() const {
  absl::Time next = deadlines_.empty() ? absl::InfiniteFuture() : deadlines_.begin()->first;
  for (const absl::Time since : reading_since_) {
    // A moment more: a read is slow once it takes longer than that.
    next = std::min(next, std::max(since + kSlowRead + absl::Milliseconds(1), next_renewal_));
  }
  return next;
}

void Pager::RunTimekeeper() {
  for (;;) {
    {
      MutexLock lock(&mu_);
      for (;;) {
        if (stopping_) return;
        const absl::Duration left = NextLookLocked() - options_.clock->MonotonicNow();
        if (left <= absl::ZeroDuration()) break;
        deadlines_changed_.WaitWithTimeout(&mu_, left);
      }
    }
    EndOverdue();
  }
}

}  // namespace pkv
