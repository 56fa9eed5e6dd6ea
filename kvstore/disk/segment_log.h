#ifndef PKV_KVSTORE_DISK_SEGMENT_LOG_H_
#define PKV_KVSTORE_DISK_SEGMENT_LOG_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/disk/disk.h"
#include "kvstore/disk/log_format.h"
#include "kvstore/disk/log_index.h"
#include "kvstore/disk/segment_scan.h"
#include "proto/base/clock.h"
#include "proto/base/sync.h"

namespace pkv {

enum class DiskOp { kRead, kWrite, kSync };

// Told what the log does, for metrics. Called without a lock held; must not call the log.
class LogObserver {
 public:
  virtual ~LogObserver() = default;
  // One call of a file that ended well; `bytes` 0 for kSync.
  virtual void OnDiskIo(DiskOp op, uint64_t bytes, absl::Duration duration) = 0;
  // One that failed. Making and removing files counts as kWrite.
  virtual void OnDiskError(DiskOp op) = 0;
  // An object went with the oldest segment; `idle`: since its last use that this process saw.
  virtual void OnLogEviction(uint64_t object_bytes, absl::Duration idle) = 0;
};

struct LogStats {
  uint64_t capacity_bytes = 0;
  uint64_t resident_bytes = 0;  // of segments, as far as they are written; dead records included
  uint64_t num_objects = 0;
  uint64_t num_segments = 0;
  // Records and segments found damaged at start, or not to be read; torn objects are not.
  uint64_t num_damaged = 0;
};

// What Read() gave is the object of `key`: header, frame table and every frame fit their checksums.
//   DataLoss  something does not, or another object stands there
absl::Status VerifyLogObject(std::span<const std::byte> object, const ObjectKey& key);

// Below this two segments would not hold anything.
inline constexpr uint64_t kLogBytesMin = uint64_t{1} << 20;

// Objects in append-only segment files (README.md): an index in memory, rebuilt from the files at
// start, over a log on disk, of which the oldest segment goes as a whole when room is needed.
//
//   append --> in the file --Publish--> in the index --Erase | Read failed--> tombstone in the file
//                                          |
//                                          +-- its segment is the oldest, and room is needed
//
// All questions are answered from memory and never wait for the disk. Files are written by one
// thread, the writer. The log never takes more of the disk than its capacity; one segment of it is
// kept free, so that tables which younger blocks need are written again before their segment goes.
//
// Nothing read from disk is trusted: Read() gives bytes, and who reads checks them.
//
// Thread-safe, but for the calls of the writer.
class SegmentLog {
 public:
  struct Options {
    Disk* disk = nullptr;  // outlives the log
    uint64_t capacity_bytes = 0;
    uint64_t segment_bytes = 0;  // 0: SegmentBytesFor(capacity_bytes)
    uint64_t salt = 0;           // random, another one for each Open
    Clock* clock = nullptr;
    LogObserver* observer = nullptr;  // may be null; outlives the log
  };

  // 256 MiB, less for small capacities so that one segment is at most an eighth, more for large
  // ones so that there are at most 256: each is an open file.
  static uint64_t SegmentBytesFor(uint64_t capacity_bytes);

  // Reads the heads of all records (segment_scan.h) and shortens each segment to its last one.
  // The objects written last, which a crash may have torn, are read too, and dropped if they are.
  // Segments that hold nothing are removed; and, oldest first, those that do not fit
  // `capacity_bytes`. What cannot be read is neither shortened nor removed, but for its age.
  //   InvalidArgument     capacity below kLogBytesMin or above the file system's size
  //   FailedPrecondition  the folder holds something that is not a segment of this format; it is
  //                       named, and no file was changed
  //   Unavailable         the folder cannot be read
  static absl::StatusOr<std::unique_ptr<SegmentLog>> Open(const Options& options);
  SegmentLog(const SegmentLog&) = delete;
  SegmentLog& operator=(const SegmentLog&) = delete;

  // Nothing on a miss.
  std::optional<LogRecord> Find(const ObjectKey& key) const;
  // Whether this very record is the one in the index.
  bool Holds(const ObjectKey& key, const LogRecord& record) const;
  // Whether blocks on disk refer to this table.
  bool HasDependents(const ObjectKey& table) const;
  // Whether its segment is among those that go next: the oldest eighth, once room is needed.
  bool IsAging(const LogRecord& record) const;
  // Counts as a use; for the age at its eviction alone.
  void Touch(const ObjectKey& key);
  // Takes it out of the index; the writer follows with a tombstone. False when there is none.
  bool Erase(const ObjectKey& key);

  // The object's bytes and what fills their last unit. Waits for the disk.
  // REQUIRES: `out` is the object's size, rounded up to kDiskUnitBytes.
  //   NotFound     its segment is gone
  //   Unavailable  the disk failed
  absl::Status Read(const LogRecord& record, std::span<std::byte> out) const;

  // For a while Find() goes on answering, but nobody should Read(): the disk is slow or fails.
  void SuspendReads(absl::Duration duration);
  bool reads_suspended() const;

  LogStats stats() const;
  uint64_t largest_object_bytes() const { return segment_bytes_ - 2 * kDiskUnitBytes; }

  // The writer's calls: from one thread at a time. They wait for the disk. When one fails, the
  // segment is synced where it was good and ends there, and the next call begins another. If that
  // sync failed, the error says so.

  // Writes one object behind all that was written; `object` is whole units, the object first and
  // then zeros. It is not in the index yet: Publish() or Discard() comes next.
  //   InvalidArgument    above largest_object_bytes()
  //   ResourceExhausted  the file system has no room; the oldest segment went and it was not enough
  //   Unavailable        the disk failed
  absl::StatusOr<LogRecord> Append(const ObjectKey& key, const LogRecord& description,
                                   std::span<const std::byte> object);
  void Publish(const ObjectKey& key, const LogRecord& record);
  // It was deleted while it was written.
  void Discard(const ObjectKey& key);
  // Whether tombstones wait to be written.
  bool HasTombstones() const;
  // Writes the tombstones that wait; all that was written is there after a crash.
  absl::Status Sync();

 private:
  struct Segment {
    SegmentHead head;
    std::unique_ptr<DiskFile> file;
    uint64_t file_bytes = 0;  // that it takes of the disk
    uint64_t end_bytes = 0;   // behind its last record
  };
  using SegmentPtr = std::shared_ptr<Segment>;  // reads go on in one that is dropped

  explicit SegmentLog(const Options& options);

  // Open().
  struct Candidate;
  absl::Status Recover();
  absl::StatusOr<std::vector<Candidate>> OpenFiles();
  void CountDamage(const Candidate& candidate);
  void Adopt(Candidate& candidate, uint64_t number);
  void DropTorn();

  // The writer.
  absl::Status Write(uint64_t offset, std::span<const std::span<const std::byte>> pieces);
  absl::Status WriteTombstones();
  // Behind what the active segment holds. REQUIRES: there is room.
  absl::StatusOr<LogRecord> WriteRecord(RecordHead head, std::span<const std::byte> object);
  absl::Status MakeRoom(uint64_t record_bytes);
  absl::Status BeginSegment();
  absl::StatusOr<SegmentPtr> CreateSegment(uint64_t number);
  void EndSegment();
  absl::Status SyncActive();
  // Tables of a segment that goes.
  struct Carried {
    ObjectKey key;
    LogRecord record;
    absl::Time last_use;
    DiskBuffer object;
  };
  std::vector<Carried> ReadNeededTables(uint64_t segment);
  // Into the active segment, as far as half of it.
  void WriteCarried();
  bool DropOldest();
  void FreeSpare();
  absl::Status Checked(DiskOp op, absl::Status status) const;
  void UpdateAgingLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  uint64_t FileBytesLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant after construction.
  Disk* const disk_;
  const uint64_t capacity_bytes_;
  const uint64_t segment_bytes_;
  const uint64_t salt_;
  Clock* const clock_;
  LogObserver* const observer_;

  uint64_t num_damaged_ = 0;  // set by Open()

  // The writer's own.
  SegmentPtr active_;  // null: the next record begins one
  uint64_t next_number_ = 1;
  uint64_t unsynced_bytes_ = 0;
  std::vector<Carried> carried_;  // on their way from the oldest segment to the active one
  DiskBuffer head_unit_{kDiskUnitBytes};

  mutable Mutex mu_;
  LogIndex index_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, SegmentPtr> segments_ ABSL_GUARDED_BY(mu_);  // by number: the oldest first
  std::vector<ObjectKey> tombstones_ ABSL_GUARDED_BY(mu_);        // to be written
  uint64_t aging_end_ ABSL_GUARDED_BY(mu_) = 0;                   // segments below are aging
  absl::Time suspended_until_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
};

}  // namespace pkv

#endif  // PKV_KVSTORE_DISK_SEGMENT_LOG_H_
