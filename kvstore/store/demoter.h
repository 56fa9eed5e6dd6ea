#ifndef PKV_KVSTORE_STORE_DEMOTER_H_
#define PKV_KVSTORE_STORE_DEMOTER_H_

#include <cstdint>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kvstore/store/block_store.h"
#include "proto/base/clock.h"
#include "proto/base/sync.h"

namespace pkv {

// Makes room in memory before it is needed: once the store is crowded, one thread writes what was
// used least recently to the log and lets it go, until `relaxed_bytes` are in use. Puts never wait
// for it; when they outrun it, the store evicts as it does without a disk. It is the log's writer.
//
// Written is what the disk is for: blocks and tables, with `reused_only` those alone that were got
// twice since they were put, and what blocks on disk need. Windows belong to one hand-off. What is
// on disk already is let go without writing.
//
// When the disk fails, writing stops for a second, then for twice that, up to a minute.
//
// Thread-safe.
class Demoter {
 public:
  struct Options {
    BlockStore* store = nullptr;  // outlives this, as the next two
    SegmentLog* log = nullptr;
    Clock* clock = nullptr;
    uint64_t relaxed_bytes = 0;
    bool reused_only = false;
  };

  explicit Demoter(const Options& options);
  // Without WriteAll() before: what is in memory alone is lost, as in a crash.
  ~Demoter() { Stop(); }
  Demoter(const Demoter&) = delete;
  Demoter& operator=(const Demoter&) = delete;

  // Ends the thread, writes what is in memory and belongs on disk until `deadline`, and syncs the
  // log. Chosen is what was used last, as much as a slow disk can write in that time, and of that
  // written what was used first: the log loses its oldest first, and a chain its end. Then the rest
  // likewise. For the end of the process; once more, it writes what has come meanwhile.
  void WriteAll(absl::Time deadline);

 private:
  void Run();
  void Stop();
  bool IsStopping();
  // Returns whether anything was let go.
  bool MakeRoom();
  // Writes the object, its table before it, unless they are on disk.
  //   DataLoss         the memory has rotted; the object is dropped
  //   InvalidArgument  larger than the log takes
  //   others           the disk
  absl::Status Write(const DemotionCandidate& candidate);
  absl::Status WriteObject(const Lease& lease);
  bool IsAdmitted(const DemotionCandidate& candidate) const;
  // Counts failures of the disk; whether it may be written now.
  absl::Status Noted(absl::Status status);
  bool MayWrite() const;

  const Options options_;
  std::thread thread_;

  // Of the thread, and of WriteAll() once that has ended.
  absl::Duration rest_ = absl::ZeroDuration();  // after the last failure
  absl::Time rests_until_ = absl::InfinitePast();

  Mutex mu_;
  CondVar stop_requested_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace pkv

#endif  // PKV_KVSTORE_STORE_DEMOTER_H_
