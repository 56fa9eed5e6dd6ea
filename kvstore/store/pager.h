#ifndef PKV_KVSTORE_STORE_PAGER_H_
#define PKV_KVSTORE_STORE_PAGER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "kvstore/store/block_store.h"
#include "proto/base/clock.h"
#include "proto/base/sync.h"

namespace pkv {

// Brings objects from disk into memory for those who want to read them: on threads of its own, each
// object once however many ask for it, tables before the blocks that need them, and checked before
// anybody sees them. Counts as no use. Memory for them is made of what is on disk as well. What
// does not come, because it is damaged, the disk fails or is slow, or memory is full of what is in
// use or in no other place, is a miss.
//
// A disk on which one read takes longer than kSlowRead, or three in a row fail, is left alone for
// kDiskRest, and as long as such a read is under way: until then nothing is on disk, as far as
// readers are told.
//
// Thread-safe.
class Pager {
 public:
  struct Options {
    BlockStore* store = nullptr;  // outlives this, as the next two
    SegmentLog* log = nullptr;
    Clock* clock = nullptr;
    // Reads at a time; each has the memory of one object.
    int num_threads = 4;
    // Objects that wait to be read. One more is a miss.
    size_t max_waiting = 16384;
  };
  struct Result {
    // Of all that was asked for and is in memory now, and of the tables that had to be for it: it
    // stays until the caller has found it. In no order.
    std::vector<Lease> held;
    int num_paged_in = 0;  // of what was asked for
  };
  using Done = std::function<void(Result)>;

  static constexpr absl::Duration kSlowRead = absl::Seconds(1);
  static constexpr absl::Duration kDiskRest = absl::Seconds(10);

  explicit Pager(const Options& options);
  // Ends what is under way; every `done` has been called when it returns.
  ~Pager();
  Pager(const Pager&) = delete;
  Pager& operator=(const Pager&) = delete;

  // Whether Fetch() would have to wait for the disk. Cheap.
  bool IsNeeded(std::span<const ObjectKey> keys) const;
  // Calls `done` exactly once: when all is in memory that can be, or after `patience` with what is
  // there. From the caller's thread if there is nothing to wait for, else from one of the pager's,
  // which it must not block; no lock is held.
  void Fetch(std::span<const ObjectKey> keys, absl::Duration patience, Done done);
  // Waits itself.
  Result FetchAndWait(std::span<const ObjectKey> keys, absl::Duration patience);

  // What a thread does when the next fetch or read is overdue. Returns how many fetches were.
  int EndOverdue();

 private:
  // One Fetch. Guarded by mu_, but for what is constant.
  struct Request {
    Done done;
    absl::Time deadline;
    std::vector<DiskCopy> others;  // to be read once the tables are there
    size_t num_missing = 0;        // reads it waits for
    bool ended = false;
    Result result;
  };
  using RequestPtr = std::shared_ptr<Request>;  // of its reads and the list of deadlines
  struct Read {
    DiskCopy copy;
    struct Waiter {
      RequestPtr request;
      bool is_implied;
    };
    std::vector<Waiter> waiters;  // guarded by mu_
  };

  void RunReader(size_t index);
  void RunTimekeeper();
  absl::StatusOr<Lease> ReadOne(const DiskCopy& copy);
  void NoteRead(const absl::Status& status, absl::Duration duration);
  // Hands what was read to those who wait for it; those that have all are added to `ready`.
  void Deliver(Read& read, absl::StatusOr<Lease> lease);
  void QueueLocked(const RequestPtr& request, std::span<const DiskCopy> copies)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Goes on with a request whose reads are done. True when it has ended: call End() without the
  // lock.
  bool AdvanceLocked(const RequestPtr& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Forgets who waits for what although it has ended, and reads that nobody waits for.
  void DropEndedLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Until there is something for EndOverdue().
  absl::Time NextLookLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static void End(const RequestPtr& request);

  const Options options_;

  Mutex mu_;
  CondVar work_ready_;
  CondVar deadlines_changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  int num_failed_in_a_row_ ABSL_GUARDED_BY(mu_) = 0;
  absl::flat_hash_map<ObjectKey, std::shared_ptr<Read>> reads_ ABSL_GUARDED_BY(mu_);
  std::deque<std::shared_ptr<Read>> waiting_ ABSL_GUARDED_BY(mu_);
  std::set<std::pair<absl::Time, RequestPtr>> deadlines_ ABSL_GUARDED_BY(mu_);
  std::vector<absl::Time> reading_since_ ABSL_GUARDED_BY(mu_);  // by thread; future: it does not
  absl::Time next_renewal_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();  // of a suspension
  std::vector<std::thread> threads_;  // constant after construction
};

// From where a get that misses in memory may have objects brought in.
struct PageInSource {
  Pager* pager = nullptr;  // null: there is no disk
  // Longest that a get waits; what is not there by then is a miss.
  absl::Duration patience = absl::ZeroDuration();

  bool IsNeeded(std::span<const ObjectKey> keys) const {
    return pager != nullptr && pager->IsNeeded(keys);
  }
};

}  // namespace pkv

#endif  // PKV_KVSTORE_STORE_PAGER_H_
