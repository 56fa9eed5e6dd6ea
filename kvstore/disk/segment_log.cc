#include "kvstore/disk/segment_log.h"

#include <algorithm>
#include <array>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "pkv/block/object_view.h"
#include "proto/base/checked_math.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/base/thread_pool.h"

namespace pkv {
namespace {

constexpr uint64_t kSegmentBytesUsual = uint64_t{256} << 20;
// Open files. Restarts leave short segments, so there may be more than capacity / segment size.
constexpr uint64_t kSegmentsMax = 512;
// A crash loses at most this, and the page cache, where there is one, holds no more of it.
constexpr uint64_t kUnsyncedBytesMax = uint64_t{32} << 20;
constexpr int kScanThreads = 8;
// What a crash may have torn: behind the last sync, and the object that was being written.
constexpr uint64_t kSuspectBytes = 2 * kUnsyncedBytesMax;

std::string SegmentName(uint64_t number) { return absl::StrFormat("%016x.pkvlog", number); }

bool IsSegmentName(absl::string_view name) {
  uint64_t number = 0;
  return name.size() == 23 && absl::SimpleHexAtoi(name.substr(0, 16), &number) &&
         SegmentName(number) == name;
}

}  // namespace

absl::Status VerifyLogObject(std::span<const std::byte> object, const ObjectKey& key) {
  const absl::StatusOr<ObjectView> view = ObjectView::Parse(object);
  // Whatever is wrong with what was right when it was written is damage, not a bad argument.
  if (!view.ok()) return absl::DataLossError(view.status().message());
  if (view->header().key() != key) return absl::DataLossError("another object stands there");
  for (int layer = 0; layer < view->header().num_layers; ++layer) {
    PKV_RETURN_IF_ERROR(VerifyFrame(view->frame(layer), layer, view->frame_crc32c(layer)));
  }
  return absl::OkStatus();
}

// A segment file found at start.
struct SegmentLog::Candidate {
  std::string name;
  std::unique_ptr<DiskFile> file;
  absl::StatusOr<ScannedSegment> scanned = absl::UnknownError("not scanned");
};

uint64_t SegmentLog::SegmentBytesFor(uint64_t capacity_bytes) {
  const uint64_t bytes =
      std::max(std::min(kSegmentBytesUsual, capacity_bytes / 8), capacity_bytes / 256);
  return bytes / kDiskUnitBytes * kDiskUnitBytes;
}

SegmentLog::SegmentLog(const Options& options)
    : disk_(options.disk),
      capacity_bytes_(options.capacity_bytes),
      segment_bytes_(options.segment_bytes == 0 ? SegmentBytesFor(options.capacity_bytes)
                                                : options.segment_bytes),
      salt_(options.salt),
      clock_(options.clock),
      observer_(options.observer) {}

absl::StatusOr<std::unique_ptr<SegmentLog>> SegmentLog::Open(const Options& options) {
  PKV_CHECK(options.disk != nullptr && options.clock != nullptr);
  PKV_ASSIGN_OR_RETURN(const uint64_t total_bytes, options.disk->TotalBytes());
  if (options.capacity_bytes < kLogBytesMin || options.capacity_bytes > total_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("a capacity of ", options.capacity_bytes,
                                                   " bytes on disk is not in [", kLogBytesMin, ", ",
                                                   total_bytes, "], the file system's size"));
  }
  std::unique_ptr<SegmentLog> log(new SegmentLog(options));
  PKV_CHECK(log->segment_bytes_ % kDiskUnitBytes == 0 && log->segment_bytes_ > 2 * kDiskUnitBytes &&
                log->segment_bytes_ <= log->capacity_bytes_ / 2,
            "segments of ", log->segment_bytes_);
  PKV_RETURN_IF_ERROR(log->Recover());
  return log;
}

absl::StatusOr<std::vector<SegmentLog::Candidate>> SegmentLog::OpenFiles() {
  PKV_ASSIGN_OR_RETURN(std::vector<std::string> names, disk_->List());
  std::ranges::sort(names);
  std::vector<Candidate> candidates;
  for (std::string& name : names) {
    if (name == "lost+found") continue;  // every ext4 has one at its root
    if (!IsSegmentName(name)) {
      return absl::FailedPreconditionError(
          absl::StrCat("\"", name, "\" is no file of pkvd: give it a folder of its own"));
    }
    PKV_ASSIGN_OR_RETURN(std::unique_ptr<DiskFile> file, disk_->Open(name));
    candidates.push_back({std::move(name), std::move(file)});
  }
  ThreadPool pool(std::clamp(static_cast<int>(candidates.size()), 1, kScanThreads));
  pool.ParallelFor(static_cast<int>(candidates.size()), [&candidates](int i) {
    candidates[i].scanned = ScanSegment(*candidates[i].file);
  });
  for (const Candidate& candidate : candidates) {
    const absl::Status& status = candidate.scanned.status();
    if (!absl::IsFailedPrecondition(status)) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("\"", candidate.name, "\": ", status.message(),
                     "; remove it, or give this pkvd another folder"));
  }
  return candidates;
}

absl::Status SegmentLog::Recover() {
  PKV_ASSIGN_OR_RETURN(std::vector<Candidate> candidates, OpenFiles());
  for (Candidate& candidate : candidates) {
    uint64_t number = 0;
    PKV_CHECK(absl::SimpleHexAtoi(candidate.name.substr(0, 16), &number));
    next_number_ = std::max(next_number_, number + 1);
    if (candidate.scanned.ok() && candidate.scanned->head.number != number) {
      candidate.scanned = absl::DataLossError("the segment has another file's number");
    }
    CountDamage(candidate);
    Adopt(candidate, number);
  }
  DropTorn();
  FreeSpare();
  // Tables that went with what did not fit: blocks that need them are misses until they are there.
  if (!carried_.empty()) BeginSegment().IgnoreError();
  return absl::OkStatus();
}

void SegmentLog::CountDamage(const Candidate& candidate) {
  absl::Status status = candidate.scanned.status();
  if (status.ok()) {
    num_damaged_ += candidate.scanned->num_damaged;
    status = candidate.scanned->read_status;
  }
  if (status.ok() || absl::IsNotFound(status)) return;
  ++num_damaged_;
  const bool is_damaged = absl::IsDataLoss(status);
  if (!is_damaged) Checked(DiskOp::kRead, status).IgnoreError();
  Log(LogLevel::kWarning,
      is_damaged ? "ssd: a segment is dropped" : "ssd: part of a segment cannot be read",
      {{"file", candidate.name}, {"reason", status.ToString()}});
}

// A record's head may have reached the disk before a crash, and its object not. Found now, that is
// no damage; found by a reader later, it would be counted as one.
void SegmentLog::DropTorn() {
  std::vector<std::pair<ObjectKey, LogRecord>> suspects;
  {
    MutexLock lock(&mu_);
    if (segments_.empty()) return;
    const auto& [number, newest] = *segments_.rbegin();
    const uint64_t synced_bytes =
        newest->end_bytes > kSuspectBytes ? newest->end_bytes - kSuspectBytes : 0;
    suspects = index_.RecordsBehind(number, synced_bytes);
  }
  for (const auto& [key, record] : suspects) {
    DiskBuffer object(AlignUp(record.object_bytes, kDiskUnitBytes));
    // What cannot be read now may be another time.
    if (Read(record, object.span()).ok() &&
        !VerifyLogObject(object.span().first(record.object_bytes), key).ok()) {
      Erase(key);
    }
  }
}

void SegmentLog::Adopt(Candidate& candidate, uint64_t number) {
  const absl::Time now = clock_->MonotonicNow();
  const absl::Status status =
      candidate.scanned.ok() ? candidate.scanned->read_status : candidate.scanned.status();
  const bool is_read = status.ok() || absl::IsNotFound(status) || absl::IsDataLoss(status);
  if (is_read && (!candidate.scanned.ok() || candidate.scanned->records.empty())) {
    candidate.file.reset();
    Checked(DiskOp::kWrite, disk_->Remove(candidate.name)).IgnoreError();
    return;
  }
  ScannedSegment scanned;
  if (candidate.scanned.ok()) {
    scanned = *std::move(candidate.scanned);
  } else {
    // It takes its part of the disk until it is the oldest.
    scanned.file_bytes = candidate.file->Size().value_or(segment_bytes_);
  }
  auto segment = std::make_shared<Segment>();
  segment->head = scanned.head;
  segment->head.number = number;
  segment->end_bytes = scanned.end_bytes;
  segment->file_bytes = scanned.file_bytes;
  // What is behind the last record will not be written any more.
  if (is_read && Checked(DiskOp::kWrite, candidate.file->Truncate(scanned.end_bytes)).ok()) {
    segment->file_bytes = scanned.end_bytes;
  }
  segment->file = std::move(candidate.file);
  MutexLock lock(&mu_);
  segments_[number] = std::move(segment);
  for (const RecordHead& record : scanned.records) {
    if (record.kind == RecordKind::kObject) {
      index_.Insert(record.key(), LogRecordOf(record), now);
    } else {
      index_.Erase(record.key());
    }
  }
}

absl::Status SegmentLog::Checked(DiskOp op, absl::Status status) const {
  if (!status.ok() && observer_ != nullptr) observer_->OnDiskError(op);
  return status;
}

std::optional<LogRecord> SegmentLog::Find(const ObjectKey& key) const {
  MutexLock lock(&mu_);
  const LogIndex::Entry* entry = index_.Find(key);
  if (entry == nullptr) return std::nullopt;
  return entry->record;
}

bool SegmentLog::Holds(const ObjectKey& key, const LogRecord& record) const {
  const std::optional<LogRecord> found = Find(key);
  return found.has_value() && found->IsAt(record);
}

bool SegmentLog::HasDependents(const ObjectKey& table) const {
  MutexLock lock(&mu_);
  return index_.HasDependents(table);
}

bool SegmentLog::IsAging(const LogRecord& record) const {
  MutexLock lock(&mu_);
  return record.segment < aging_end_;
}

void SegmentLog::Touch(const ObjectKey& key) {
  const absl::Time now = clock_->MonotonicNow();
  MutexLock lock(&mu_);
  index_.Touch(key, now);
}

bool SegmentLog::Erase(const ObjectKey& key) {
  MutexLock lock(&mu_);
  if (!index_.Erase(key)) return false;
  tombstones_.push_back(key);
  return true;
}

absl::Status SegmentLog::Read(const LogRecord& record, std::span<std::byte> out) const {
  PKV_CHECK(out.size() == AlignUp(record.object_bytes, kDiskUnitBytes), out.size());
  SegmentPtr segment;
  {
    MutexLock lock(&mu_);
    const auto found = segments_.find(record.segment);
    if (found == segments_.end()) return absl::NotFoundError("the segment is gone");
    segment = found->second;
  }
  const absl::Time begin = clock_->MonotonicNow();
  PKV_RETURN_IF_ERROR(
      Checked(DiskOp::kRead, segment->file->Read(record.offset + kDiskUnitBytes, out)));
  if (observer_ != nullptr) {
    observer_->OnDiskIo(DiskOp::kRead, out.size(), clock_->MonotonicNow() - begin);
  }
  return absl::OkStatus();
}

void SegmentLog::SuspendReads(absl::Duration duration) {
  const absl::Time until = clock_->MonotonicNow() + duration;
  MutexLock lock(&mu_);
  suspended_until_ = std::max(suspended_until_, until);
}

bool SegmentLog::reads_suspended() const {
  const absl::Time now = clock_->MonotonicNow();
  MutexLock lock(&mu_);
  return now < suspended_until_;
}

LogStats SegmentLog::stats() const {
  MutexLock lock(&mu_);
  LogStats stats{.capacity_bytes = capacity_bytes_,
                 .num_objects = index_.size(),
                 .num_segments = segments_.size(),
                 .num_damaged = num_damaged_};
  for (const auto& [number, segment] : segments_) stats.resident_bytes += segment->end_bytes;
  return stats;
}

absl::Status SegmentLog::Write(uint64_t offset,
                               std::span<const std::span<const std::byte>> pieces) {
  uint64_t bytes = 0;
  for (const std::span<const std::byte>& piece : pieces) bytes += piece.size();
  const absl::Time begin = clock_->MonotonicNow();
  PKV_RETURN_IF_ERROR(Checked(DiskOp::kWrite, active_->file->Write(offset, pieces)));
  if (observer_ != nullptr) {
    observer_->OnDiskIo(DiskOp::kWrite, bytes, clock_->MonotonicNow() - begin);
  }
  unsynced_bytes_ += bytes;
  return absl::OkStatus();
}

absl::StatusOr<LogRecord> SegmentLog::WriteRecord(RecordHead head,
                                                  std::span<const std::byte> object) {
  head.salt = active_->head.salt;
  head.segment = active_->head.number;
  head.offset = active_->end_bytes;
  SealRecordHead(head, head_unit_.span().first<kDiskUnitBytes>());
  const std::array<std::span<const std::byte>, 2> pieces = {head_unit_.span(), object};
  const absl::Status written = Write(head.offset, std::span(pieces).first(object.empty() ? 1 : 2));
  if (!written.ok()) {
    // What stands there now is anybody's guess: it is cut off, and what stands before it is kept.
    const SegmentPtr ended = active_;
    EndSegment();
    const absl::Status synced = Checked(DiskOp::kSync, ended->file->Sync());
    if (synced.ok()) return written;
    return absl::Status(written.code(), absl::StrCat(written.message(), "; then ", synced.message(),
                                                     ": some may be lost"));
  }
  MutexLock lock(&mu_);
  active_->end_bytes += head.record_bytes();
  return LogRecordOf(head);
}

absl::StatusOr<LogRecord> SegmentLog::Append(const ObjectKey& key, const LogRecord& description,
                                             std::span<const std::byte> object) {
  if (description.object_bytes > largest_object_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat("an object of ", description.object_bytes,
                                                   " bytes, limit ", largest_object_bytes()));
  }
  PKV_CHECK(object.size() == AlignUp(description.object_bytes, kDiskUnitBytes), object.size());
  PKV_RETURN_IF_ERROR(WriteTombstones());
  RecordHead head = RecordHeadOf(RecordKind::kObject, key);
  head.num_layers = static_cast<uint16_t>(description.num_layers);
  head.object_bytes = description.object_bytes;
  head.frame_bytes = description.frame_bytes;
  head.table = description.table;
  head.num_patterns_k = description.num_patterns_k;
  head.num_patterns_v = description.num_patterns_v;
  head.content_crc32c = description.content_crc32c;
  PKV_RETURN_IF_ERROR(MakeRoom(head.record_bytes()));
  PKV_ASSIGN_OR_RETURN(const LogRecord record, WriteRecord(head, object));
  if (unsynced_bytes_ >= kUnsyncedBytesMax) PKV_RETURN_IF_ERROR(SyncActive());
  return record;
}

void SegmentLog::Publish(const ObjectKey& key, const LogRecord& record) {
  const absl::Time now = clock_->MonotonicNow();
  MutexLock lock(&mu_);
  index_.Insert(key, record, now);
}

void SegmentLog::Discard(const ObjectKey& key) {
  MutexLock lock(&mu_);
  // One that was in the index is void as well: the tombstone will say so of both.
  index_.Erase(key);
  tombstones_.push_back(key);
}

bool SegmentLog::HasTombstones() const {
  MutexLock lock(&mu_);
  return !tombstones_.empty();
}

absl::Status SegmentLog::WriteTombstones() {
  for (;;) {
    ObjectKey key;
    {
      MutexLock lock(&mu_);
      if (tombstones_.empty()) return absl::OkStatus();
      key = std::move(tombstones_.back());
      tombstones_.pop_back();
    }
    const RecordHead head = RecordHeadOf(RecordKind::kTombstone, key);
    absl::Status status = MakeRoom(head.record_bytes());
    if (status.ok()) status = WriteRecord(head, {}).status();
    if (!status.ok()) {
      MutexLock lock(&mu_);
      tombstones_.push_back(std::move(key));
      return status;
    }
  }
}

absl::Status SegmentLog::MakeRoom(uint64_t record_bytes) {
  if (active_ != nullptr && record_bytes <= segment_bytes_ - active_->end_bytes) {
    return absl::OkStatus();
  }
  if (active_ != nullptr) {
    PKV_RETURN_IF_ERROR(SyncActive());
    EndSegment();
  }
  return BeginSegment();
}

absl::Status SegmentLog::BeginSegment() {
  // A number is used once, also when its file could not be made: it may be there all the same.
  absl::StatusOr<SegmentPtr> created = CreateSegment(next_number_++);
  // Somebody else took the room: make do with less.
  if (absl::IsResourceExhausted(created.status()) && DropOldest()) {
    created = CreateSegment(next_number_++);
  }
  PKV_RETURN_IF_ERROR(Checked(DiskOp::kWrite, created.status()));
  active_ = *std::move(created);
  {
    MutexLock lock(&mu_);
    segments_[active_->head.number] = active_;
  }
  WriteCarried();
  FreeSpare();
  // Carrying tables may have failed, and ended the segment.
  return active_ != nullptr ? absl::OkStatus()
                            : absl::UnavailableError("the segment could not be written");
}

absl::StatusOr<SegmentLog::SegmentPtr> SegmentLog::CreateSegment(uint64_t number) {
  const std::string name = SegmentName(number);
  auto segment = std::make_shared<Segment>();
  segment->head = {.number = number, .salt = salt_, .segment_bytes = segment_bytes_};
  segment->file_bytes = segment_bytes_;
  segment->end_bytes = kDiskUnitBytes;
  PKV_ASSIGN_OR_RETURN(segment->file, disk_->Create(name));
  SealSegmentHead(segment->head, head_unit_.span().first<kDiskUnitBytes>());
  const std::span<const std::byte> head = head_unit_.span();
  absl::Status status = segment->file->Allocate(segment_bytes_);
  if (status.ok()) status = segment->file->Write(0, {&head, 1});
  // The file's own Sync() does not keep its name.
  if (status.ok()) status = disk_->SyncFolder();
  if (status.ok()) return segment;
  segment->file.reset();
  disk_->Remove(name).IgnoreError();
  return status;
}

// Keeps room for one more segment, and for its file.
void SegmentLog::FreeSpare() {
  for (;;) {
    {
      MutexLock lock(&mu_);
      if (FileBytesLocked() + segment_bytes_ <= capacity_bytes_ &&
          segments_.size() < kSegmentsMax) {
        UpdateAgingLocked();
        return;
      }
    }
    if (!DropOldest()) return;
  }
}

bool SegmentLog::DropOldest() {
  uint64_t number = 0;
  {
    MutexLock lock(&mu_);
    if (segments_.empty() || segments_.begin()->second == active_) return false;
    number = segments_.begin()->first;
  }
  for (Carried& table : ReadNeededTables(number)) carried_.push_back(std::move(table));
  // Else there is no room for them before this one has gone.
  if (active_ != nullptr) WriteCarried();
  const absl::Time now = clock_->MonotonicNow();
  std::vector<LogIndex::Dropped> dropped;
  {
    MutexLock lock(&mu_);
    dropped = index_.DropSegment(number);
    segments_.erase(number);
  }
  for (const LogIndex::Dropped& object : dropped) {
    if (observer_ != nullptr) observer_->OnLogEviction(object.object_bytes, now - object.last_use);
  }
  Checked(DiskOp::kWrite, disk_->Remove(SegmentName(number))).IgnoreError();
  return true;
}

// Without its table no block can be read: those that younger segments need move to the active one.
std::vector<SegmentLog::Carried> SegmentLog::ReadNeededTables(uint64_t segment) {
  std::vector<Carried> tables;
  {
    MutexLock lock(&mu_);
    uint64_t bytes = 0;
    for (const auto& [key, record] : index_.NeededTables(segment)) {
      const uint64_t object_bytes = AlignUp(record.object_bytes, kDiskUnitBytes);
      bytes += kDiskUnitBytes + object_bytes;
      if (bytes > segment_bytes_ / 2) break;
      tables.push_back({key, record, index_.Find(key)->last_use, DiskBuffer(object_bytes)});
    }
  }
  std::erase_if(tables, [this](Carried& table) {
    const std::span<std::byte> object = table.object.span();
    return !Read(table.record, object).ok() ||
           !VerifyLogObject(object.first(table.record.object_bytes), table.key).ok();
  });
  return tables;
}

void SegmentLog::WriteCarried() {
  bool has_written = false;
  for (Carried& table : std::exchange(carried_, {})) {
    const std::span<const std::byte> object = table.object.span();
    if (active_ == nullptr) break;
    if (active_->end_bytes + kDiskUnitBytes + object.size() > segment_bytes_ / 2) continue;
    RecordHead head = RecordHeadOf(RecordKind::kObject, table.key);
    head.num_layers = static_cast<uint16_t>(table.record.num_layers);
    head.object_bytes = table.record.object_bytes;
    head.frame_bytes = table.record.frame_bytes;
    head.content_crc32c = table.record.content_crc32c;
    const absl::StatusOr<LogRecord> moved = WriteRecord(head, object);
    if (!moved.ok()) return;
    has_written = true;
    MutexLock lock(&mu_);
    // Unless it was deleted or written meanwhile.
    const LogIndex::Entry* entry = index_.Find(table.key);
    const bool is_wanted =
        entry == nullptr ? index_.HasDependents(table.key) : entry->record.IsAt(table.record);
    if (is_wanted) {
      index_.Insert(table.key, *moved, table.last_use);
    } else if (entry == nullptr) {
      tombstones_.push_back(table.key);
    }
  }
  // Before the segment from which they came is removed.
  if (has_written) SyncActive().IgnoreError();
}

// What is behind its last record is given back.
void SegmentLog::EndSegment() {
  const SegmentPtr ended = std::exchange(active_, nullptr);
  unsynced_bytes_ = 0;
  if (!Checked(DiskOp::kWrite, ended->file->Truncate(ended->end_bytes)).ok()) return;
  MutexLock lock(&mu_);
  ended->file_bytes = ended->end_bytes;
}

absl::Status SegmentLog::SyncActive() {
  if (active_ == nullptr || unsynced_bytes_ == 0) return absl::OkStatus();
  const absl::Time begin = clock_->MonotonicNow();
  absl::Status status = Checked(DiskOp::kSync, active_->file->Sync());
  if (!status.ok()) {
    // The kernel may have let go of what it could not write: asking again would lie.
    EndSegment();
    return status;
  }
  unsynced_bytes_ = 0;
  if (observer_ != nullptr) {
    observer_->OnDiskIo(DiskOp::kSync, 0, clock_->MonotonicNow() - begin);
  }
  return absl::OkStatus();
}

absl::Status SegmentLog::Sync() {
  PKV_RETURN_IF_ERROR(WriteTombstones());
  return SyncActive();
}

uint64_t SegmentLog::FileBytesLocked() const {
  uint64_t bytes = 0;
  for (const auto& [number, segment] : segments_) bytes += segment->file_bytes;
  return bytes;
}

void SegmentLog::UpdateAgingLocked() {
  // Segments that are gone once another eighth of the capacity is written.
  const uint64_t ahead_bytes = FileBytesLocked() + segment_bytes_ + capacity_bytes_ / 8;
  uint64_t freed_bytes = 0;
  aging_end_ = 0;
  for (const auto& [number, segment] : segments_) {
    if (ahead_bytes - freed_bytes <= capacity_bytes_) break;
    freed_bytes += segment->file_bytes;
    aging_end_ = number + 1;
  }
}

}  // namespace pkv
