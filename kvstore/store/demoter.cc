#include "kvstore/store/demoter.h"

#include <algorithm>
#include <utility>

#include "proto/base/checked_math.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

constexpr absl::Duration kRestMin = absl::Seconds(1);
constexpr absl::Duration kRestMax = absl::Seconds(60);
// Between two looks for tombstones; and between two at a store that is crowded with what is in use.
constexpr absl::Duration kLookEvery = absl::Seconds(1);
constexpr absl::Duration kPause = absl::Milliseconds(100);
// What a slow volume writes.
constexpr double kBytesPerSecondMin = 100e6;

// How many of the first can be written in `time`; at least one.
size_t CountWritable(std::span<const BlockStore::Listed> objects, absl::Duration time) {
  const double bytes_max = kBytesPerSecondMin * std::max(0.0, absl::ToDoubleSeconds(time));
  double bytes = static_cast<double>(objects.front().object_bytes);
  size_t count = 1;
  while (count < objects.size() && bytes <= bytes_max) {
    bytes += static_cast<double>(objects[count++].object_bytes);
  }
  return count;
}

}  // namespace

Demoter::Demoter(const Options& options) : options_(options) {
  thread_ = std::thread([this] { Run(); });
}

void Demoter::Stop() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    stop_requested_.SignalAll();
  }
  options_.store->StopWaiting();
  if (thread_.joinable()) thread_.join();
}

bool Demoter::IsStopping() {
  MutexLock lock(&mu_);
  return stopping_;
}

void Demoter::Run() {
  while (!IsStopping()) {
    const bool is_crowded = options_.store->AwaitCrowded(kLookEvery);
    // A delete is not long in memory alone.
    if (MayWrite() && options_.log->HasTombstones()) Noted(options_.log->Sync()).IgnoreError();
    if (!is_crowded || MakeRoom()) continue;
    MutexLock lock(&mu_);
    if (!stopping_) stop_requested_.WaitWithTimeout(&mu_, kPause);
  }
}

bool Demoter::MakeRoom() {
  bool has_made = false;
  while (!IsStopping() && MayWrite() &&
         options_.store->stats().resident_bytes > options_.relaxed_bytes) {
    std::optional<DemotionCandidate> candidate = options_.store->NextToDemote();
    if (!candidate) break;
    if (IsAdmitted(*candidate)) {
      const absl::Status written = Write(*candidate);
      // Damaged, or too large for a segment: no reason to keep it.
      if (!written.ok() && !absl::IsDataLoss(written) && !absl::IsInvalidArgument(written)) break;
    }
    has_made |= options_.store->LetGo(std::move(candidate->lease), candidate->last_use);
  }
  return has_made;
}

bool Demoter::IsAdmitted(const DemotionCandidate& candidate) const {
  if (candidate.is_on_disk || candidate.lease.key().kind == ObjectKind::kWindow) return false;
  return candidate.was_reused || candidate.is_needed || !options_.reused_only;
}

absl::Status Demoter::Write(const DemotionCandidate& candidate) {
  if (candidate.table) PKV_RETURN_IF_ERROR(WriteObject(candidate.table));
  return WriteObject(candidate.lease);
}

absl::Status Demoter::WriteObject(const Lease& lease) {
  const std::span<const std::byte> bytes = lease.bytes();
  // Rotten memory is not made to last.
  if (const absl::Status intact = VerifyLogObject(bytes, lease.key()); !intact.ok()) {
    options_.store->Quarantine(lease);
    return intact;
  }
  PKV_ASSIGN_OR_RETURN(const ObjectHeader header, ParseHeader(bytes));
  const std::span<const std::byte> units(bytes.data(), AlignUp(bytes.size(), kDiskUnitBytes));
  const absl::StatusOr<LogRecord> record =
      options_.log->Append(lease.key(), DescribeObject(header, lease.head()), units);
  PKV_RETURN_IF_ERROR(Noted(record.status()));
  options_.store->PublishDemoted(lease, *record);
  return absl::OkStatus();
}

absl::Status Demoter::Noted(absl::Status status) {
  if (status.ok()) {
    rest_ = absl::ZeroDuration();
  } else if (!absl::IsInvalidArgument(status)) {
    rest_ = std::clamp(2 * rest_, kRestMin, kRestMax);
    rests_until_ = options_.clock->MonotonicNow() + rest_;
    Log(LogLevel::kWarning, "ssd: writing failed",
        {{"reason", status.ToString()}, {"rests_seconds", absl::ToDoubleSeconds(rest_)}});
  }
  return status;
}

bool Demoter::MayWrite() const { return options_.clock->MonotonicNow() >= rests_until_; }

void Demoter::WriteAll(absl::Time deadline) {
  Stop();
  uint64_t num_written = 0, num_left = 0;
  const std::vector<BlockStore::Listed> all = options_.store->ListByLastUse();
  for (std::span<const BlockStore::Listed> left = all; !left.empty();) {
    const absl::Duration time = deadline - options_.clock->MonotonicNow();
    const size_t count = CountWritable(left, time);
    const std::span<const BlockStore::Listed> batch = left.first(count);
    left = left.subspan(count);
    for (size_t i = batch.size(); i-- > 0;) {
      const std::optional<DemotionCandidate> candidate = options_.store->FindToDemote(batch[i].key);
      if (!candidate || !IsAdmitted(*candidate)) continue;
      if (!MayWrite() || options_.clock->MonotonicNow() >= deadline) {
        ++num_left;
      } else if (Write(*candidate).ok()) {
        ++num_written;
      }
    }
  }
  const absl::Status synced = Noted(options_.log->Sync());
  Log(LogLevel::kInfo, "ssd: memory written",
      {{"objects", num_written}, {"left", num_left}, {"synced", synced.ok() ? "yes" : "no"}});
}

}  // namespace pkv
