#ifndef PKV_TESTS_SUPPORT_FAKE_PAIR_CALLS_H_
#define PKV_TESTS_SUPPORT_FAKE_PAIR_CALLS_H_

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/base/clock.h"
#include "proto/base/sync.h"
#include "proto/transport/nccl/pair_calls.h"
#include "tests/support/fake_clock.h"

namespace pkv {

// What fake ends send each other, pair by pair. Thread-safe.
class FakeLink {
 public:
  NcclUniqueId MakeUniqueId() {
    MutexLock lock(&mu_);
    ++last_id_;
    NcclUniqueId id;
    std::memcpy(id.bytes.data(), &last_id_, sizeof(last_id_));
    return id;
  }
  void Push(int from_rank, std::vector<std::byte> bytes, const NcclUniqueId& id = {}) {
    MutexLock lock(&mu_);
    queues_[{id.bytes, from_rank}].push_back(std::move(bytes));
  }
  // False when nothing has come yet.
  bool Pop(int from_rank, std::byte* to, uint64_t bytes, const NcclUniqueId& id = {}) {
    MutexLock lock(&mu_);
    auto& queue = queues_[{id.bytes, from_rank}];
    if (queue.empty()) return false;
    std::memcpy(to, queue.front().data(), std::min<uint64_t>(bytes, queue.front().size()));
    queue.pop_front();
    return true;
  }

 private:
  Mutex mu_;
  uint64_t last_id_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<std::pair<std::array<std::byte, 128>, int>, std::deque<std::vector<std::byte>>> queues_
      ABSL_GUARDED_BY(mu_);
};

// NCCL and a GPU as NcclPair sees them, in host memory: streams are queues of work that advance
// whenever something is asked. Each question answered with "not yet" takes a millisecond of `clock`
// when there is one. What is alive is counted, so that tests see leaks.
// Thread-safe.
class FakePairCalls : public PairCalls {
 public:
  // What goes wrong. Set before the pair is used.
  struct Faults {
    absl::Status register_host;  // RegisterHost fails
    absl::Status begin_init;     // BeginInit fails
    bool init_hangs = false;     // init is never ready
    absl::Status init_error;     // init's state becomes this
    int failing_begin = -1;      // this Begin, from 0 (the greeting), returns `begin_error`
    int erring_begin = -1;       // the state becomes `begin_error` after this Begin
    int hanging_begin = -1;      // operations of this Begin and later ones never complete
    int unready_begin = -1;      // the state stays "in progress" after this Begin
    absl::Status begin_error = absl::UnavailableError("remote process exited");
    bool finalize_hangs = false;
    bool abort_waits = false;  // Abort returns when LetAbortReturn is called
    bool kernels_survive_abort = false;
    int corrupt_begin = -1;            // the first byte that this Begin receives is changed
    std::function<void()> on_not_yet;  // called with each "not yet"
  };

  FakePairCalls(std::shared_ptr<FakeLink> link, FakeClock* clock) : link_(link), clock_(clock) {}
  ~FakePairCalls() override {
    for (const auto& [data, bytes] : memory_) std::free(data);
  }

  Faults faults;

  int num_alive() {
    MutexLock lock(&mu_);
    return static_cast<int>(memory_.size() + streams_.size() + events_.size() + comms_.size() +
                            registered_.size());
  }
  // Whether nothing, or no more than so much, is alive, or soon: an abort may go on on a thread of
  // its own.
  bool IsSoonEmpty() { return IsSoonDownTo(0); }
  bool IsSoonDownTo(int num_left) {
    constexpr absl::Duration kPatience = absl::Seconds(20);
    const absl::Time end = Clock::Real()->MonotonicNow() + kPatience;
    while (num_alive() > num_left && Clock::Real()->MonotonicNow() < end) {
      std::this_thread::yield();
    }
    return num_alive() == num_left;
  }
  int num_aborts() {
    MutexLock lock(&mu_);
    return num_aborts_;
  }
  int num_destroys() {
    MutexLock lock(&mu_);
    return num_destroys_;
  }
  int num_begins() {
    MutexLock lock(&mu_);
    return num_begins_;
  }
  // The stream does nothing more until LetStreamGo.
  void HoldStream(void* stream) {
    MutexLock lock(&mu_);
    is_held_ = true;
    streams_.at(stream).push_back([this] { return !is_held_; });
  }
  void HoldStreams() {
    MutexLock lock(&mu_);
    is_held_ = true;
    for (auto& [handle, works] : streams_) works.push_back([this] { return !is_held_; });
  }
  void LetStreamGo() {
    MutexLock lock(&mu_);
    is_held_ = false;
  }
  void LetAbortReturn() {
    MutexLock lock(&mu_);
    abort_may_return_ = true;
    abort_changed_.SignalAll();
  }

  absl::StatusOr<NcclUniqueId> MakeUniqueId() override { return link_->MakeUniqueId(); }

  absl::StatusOr<void*> BeginInit(const NcclUniqueId& id, int rank) override {
    if (!faults.begin_init.ok()) return faults.begin_init;
    MutexLock lock(&mu_);
    auto comm = std::make_unique<Comm>();
    comm->rank = rank;
    comm->id = id;
    comm->is_ready = !faults.init_hangs && faults.init_error.ok();
    comm->error = faults.init_error;
    void* handle = comm.get();
    comms_[handle] = std::move(comm);
    return handle;
  }

  absl::StatusOr<bool> IsReady(void* comm) override {
    bool is_ready;
    {
      MutexLock lock(&mu_);
      Advance();
      const Comm& found = *comms_.at(comm);
      if (!found.error.ok()) return found.error;
      is_ready = found.is_ready;
    }
    return is_ready || NotYet();
  }

  absl::Status Begin(void* comm, std::span<const PairOp> ops, void* stream) override {
    MutexLock lock(&mu_);
    Comm& found = *comms_.at(comm);
    const int index = num_begins_++;
    if (index == faults.failing_begin) return faults.begin_error;
    if (index == faults.erring_begin) found.error = faults.begin_error;
    if (index == faults.unready_begin) found.is_ready = false;
    const bool hangs = faults.hanging_begin >= 0 && index >= faults.hanging_begin;
    for (const PairOp& op : ops) {
      const bool corrupts = index == faults.corrupt_begin && !op.is_send;
      streams_.at(stream).push_back([this, &found, op, hangs, corrupts] {
        if (found.is_aborted) return !faults.kernels_survive_abort;
        if (hangs) return false;
        if (op.is_send) {
          link_->Push(found.rank, {op.data, op.data + op.bytes}, found.id);
          return true;
        }
        if (!link_->Pop(1 - found.rank, op.data, op.bytes, found.id)) return false;
        if (corrupts) op.data[0] ^= std::byte{1};
        return true;
      });
    }
    return absl::OkStatus();
  }

  absl::Status BeginFinalize(void* comm) override {
    MutexLock lock(&mu_);
    comms_.at(comm)->is_ready = !faults.finalize_hangs;
    return absl::OkStatus();
  }
  void Destroy(void* comm) override {
    MutexLock lock(&mu_);
    ++num_destroys_;
    comms_.erase(comm);
  }
  void Abort(void* comm) override {
    MutexLock lock(&mu_);
    ++num_aborts_;
    comms_.at(comm)->is_aborted = true;
    while (faults.abort_waits && !abort_may_return_) abort_changed_.Wait(&mu_);
    Advance();
    if (!faults.kernels_survive_abort) comms_.erase(comm);
  }

  absl::StatusOr<void*> MakeStream(int) override {
    MutexLock lock(&mu_);
    return Handle(streams_);
  }
  void DestroyStream(void* stream) override {
    MutexLock lock(&mu_);
    Advance();
    streams_.erase(stream);
  }
  absl::StatusOr<bool> StreamIsIdle(void* stream) override {
    bool is_idle;
    {
      MutexLock lock(&mu_);
      Advance();
      is_idle = streams_.at(stream).empty();
    }
    return is_idle || NotYet();
  }
  absl::StatusOr<void*> MakeEvent() override {
    MutexLock lock(&mu_);
    return Handle(events_);
  }
  void DestroyEvent(void* event) override {
    MutexLock lock(&mu_);
    events_.erase(event);
  }
  absl::Status RecordEvent(void* event, void* stream) override {
    MutexLock lock(&mu_);
    const int generation = ++events_.at(event).recorded;
    streams_.at(stream).push_back([this, event, generation] {
      events_.at(event).passed = generation;
      return true;
    });
    return absl::OkStatus();
  }
  absl::Status StreamWaitEvent(void* stream, void* event) override {
    MutexLock lock(&mu_);
    const int generation = events_.at(event).recorded;
    streams_.at(stream).push_back(
        [this, event, generation] { return events_.at(event).passed >= generation; });
    return absl::OkStatus();
  }
  absl::StatusOr<bool> EventHasPassed(void* event) override {
    bool has_passed;
    {
      MutexLock lock(&mu_);
      Advance();
      has_passed = events_.at(event).passed >= events_.at(event).recorded;
    }
    return has_passed || NotYet();
  }

  absl::StatusOr<std::byte*> AllocateDevice(uint64_t bytes) override { return Allocate(bytes); }
  void FreeDevice(std::byte* data) override { Free(data); }
  absl::Status RegisterHost(std::byte* data, uint64_t bytes) override {
    if (!faults.register_host.ok()) return faults.register_host;
    MutexLock lock(&mu_);
    registered_[data] = bytes;
    return absl::OkStatus();
  }
  void UnregisterHost(std::byte* data) override {
    MutexLock lock(&mu_);
    registered_.erase(data);
  }
  absl::StatusOr<std::byte*> AllocateHost(uint64_t bytes) override { return Allocate(bytes); }
  void FreeHost(std::byte* data) override { Free(data); }

  absl::Status CopyAsync(std::byte* to, const std::byte* from, uint64_t bytes,
                         void* stream) override {
    return Enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  }
  absl::Status CopyItems(const CopyItem* items, uint32_t num_items, void* stream) override {
    return Enqueue(stream, [=] {
      for (const CopyItem& item : std::span(items, num_items)) {
        std::memcpy(item.to, item.from, item.bytes);
      }
    });
  }
  absl::Status DigestItems(const DigestItem* items, uint32_t num_items, uint32_t* digests,
                           void* stream) override {
    return Enqueue(stream, [=] {
      // As many as there are; only those that items name are touched.
      DigestOnCpu(std::span(items, num_items), std::span(digests, num_items));
    });
  }
  absl::Status CheckItems(const CheckItem* items, uint32_t num_items, const FrameRules* rules,
                          uint32_t* flags, void* stream) override {
    return Enqueue(stream, [=] {
      for (const CheckItem& item : std::span(items, num_items)) {
        CheckOnCpu(std::span(&item, 1), std::span(rules, item.rules_index + 1),
                   std::span(flags, item.flag_index + 1));
      }
    });
  }

 private:
  struct Comm {
    int rank = 0;
    NcclUniqueId id;
    bool is_ready = false;
    bool is_aborted = false;
    absl::Status error;
  };
  struct Event {
    int recorded = 0, passed = 0;
  };
  using Work = std::function<bool()>;  // whether it is done

  template <typename T>
  void* Handle(std::map<void*, T>& made) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    void* handle = reinterpret_cast<void*>(++last_handle_);
    made[handle];
    return handle;
  }

  bool NotYet() {
    if (clock_ != nullptr) clock_->Advance(absl::Milliseconds(1));
    if (faults.on_not_yet) faults.on_not_yet();
    return false;
  }

  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    for (bool moved = true; moved;) {
      moved = false;
      for (auto& [handle, works] : streams_) {
        while (!works.empty() && works.front()()) {
          works.pop_front();
          moved = true;
        }
      }
    }
  }

  absl::Status Enqueue(void* stream, std::function<void()> work) {
    MutexLock lock(&mu_);
    streams_.at(stream).push_back([work = std::move(work)] {
      work();
      return true;
    });
    return absl::OkStatus();
  }

  std::byte* Allocate(uint64_t bytes) {
    MutexLock lock(&mu_);
    auto* data = static_cast<std::byte*>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
    memory_[data] = bytes;
    return data;
  }
  void Free(std::byte* data) {
    MutexLock lock(&mu_);
    memory_.erase(data);
    std::free(data);
  }

  const std::shared_ptr<FakeLink> link_;
  FakeClock* const clock_;

  Mutex mu_;
  CondVar abort_changed_;
  bool abort_may_return_ ABSL_GUARDED_BY(mu_) = false;
  bool is_held_ ABSL_GUARDED_BY(mu_) = false;
  int num_begins_ ABSL_GUARDED_BY(mu_) = 0;
  int num_aborts_ ABSL_GUARDED_BY(mu_) = 0;
  int num_destroys_ ABSL_GUARDED_BY(mu_) = 0;
  uintptr_t last_handle_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<void*, std::unique_ptr<Comm>> comms_ ABSL_GUARDED_BY(mu_);
  std::map<void*, std::deque<Work>> streams_ ABSL_GUARDED_BY(mu_);
  std::map<void*, Event> events_ ABSL_GUARDED_BY(mu_);
  std::map<std::byte*, uint64_t> memory_ ABSL_GUARDED_BY(mu_);
  std::map<std::byte*, uint64_t> registered_ ABSL_GUARDED_BY(mu_);  // host memory
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_FAKE_PAIR_CALLS_H_
