// A scripted history is cut off at every call of the disk, and the machine then loses its power:
// of what was not synced some is there, some is not and some is torn. Whatever the next start
// finds, an object is served with the bytes that were written or not at all, what was synced is
// there, and the log goes on.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <vector>

#include "kvstore/disk/segment_log.h"
#include "pkv/block/object_view.h"
#include "tests/unit/kvstore/disk/log_fixture.h"

namespace pkv {
namespace {

class SegmentLogCrashTest : public LogFixture, public ::testing::WithParamInterface<uint32_t> {
 protected:
  // What the tester knows of a history up to where it was cut off.
  struct Journal {
    std::set<uint64_t> synced, erased_and_synced;
  };

  static SealedObject Object(uint64_t id) { return MakeTestWindow(id, 1); }

  // Puts, a few deletions and syncs over four segments. Ends at the first error, or goes on.
  void Play(Journal& journal, bool goes_on = false) {
    std::set<uint64_t> put, erased;
    for (uint64_t id = 1; id <= 24; ++id) {
      if (!PutInLog(*log_, Object(id)).ok()) {
        if (!goes_on) return;
        continue;
      }
      put.insert(id);
      if (id % 5 == 0) {
        log_->Erase(Object(id - 2).key());
        put.erase(id - 2);
        journal.synced.erase(id - 2);  // from here on it may be there, or not
        erased.insert(id - 2);
      }
      if (id % 4 != 0) continue;
      if (!log_->Sync().ok()) {
        if (!goes_on) return;
        continue;
      }
      journal.synced = put;
      journal.erased_and_synced = erased;
    }
  }

  // Every object is what it was, or is not there.
  void CheckServed(uint64_t id, bool must_be_there) {
    const SealedObject object = Object(id);
    const std::optional<LogRecord> record = log_->Find(object.key());
    if (!record) {
      EXPECT_FALSE(must_be_there) << id;
      return;
    }
    DiskBuffer units(AlignUp(record->object_bytes, kDiskUnitBytes));
    ASSERT_THAT(log_->Read(*record, units.span()), IsOk());
    const auto bytes = units.span().first(record->object_bytes);
    const absl::StatusOr<ObjectView> view = ObjectView::Parse(bytes);
    // Segments are synced before the next one begins, and the newest one's objects are read at
    // start: what is torn was found.
    ASSERT_TRUE(view.ok() && view->VerifyAll().ok()) << id;
    EXPECT_TRUE(std::ranges::equal(bytes, object.bytes())) << id;
  }
};

TEST_P(SegmentLogCrashTest, KeepsWhatWasSyncedAndServesNothingElseThatIsWrong) {
  for (int cut = 1;; ++cut) {
    disk_ = std::make_unique<FakeDisk>();
    ASSERT_THAT(Open(), IsOk());
    int num_calls = 0;
    disk_->SetFault([&num_calls, cut](FakeDisk::Call) {
      return ++num_calls >= cut ? absl::UnavailableError("no power") : absl::OkStatus();
    });
    Journal journal;
    Play(journal);
    const bool was_cut = num_calls >= cut;
    log_.reset();
    disk_ = disk_->Crash(GetParam() + static_cast<uint32_t>(cut));
    ASSERT_THAT(Open(), IsOk()) << "cut at call " << cut;
    for (uint64_t id = 1; id <= 24; ++id) {
      SCOPED_TRACE(absl::StrCat("cut at call ", cut, ", object ", id));
      CheckServed(id, journal.synced.contains(id));
      const bool is_erased = journal.erased_and_synced.contains(id);
      EXPECT_FALSE(is_erased && log_->Find(Object(id).key()).has_value());
    }
    ASSERT_THAT(PutInLog(*log_, Object(100)), IsOk());
    EXPECT_THAT(CheckInLog(*log_, Object(100)), IsOk());
    if (!was_cut) break;
  }
}

// Only one write fails, and what comes after it is synced: so is what came before.
TEST_P(SegmentLogCrashTest, SyncsWhatCameBeforeAFailedWrite) {
  for (int failing = 1;; ++failing) {
    disk_ = std::make_unique<FakeDisk>();
    ASSERT_THAT(Open(), IsOk());
    int num_writes = 0;
    disk_->SetFault([&num_writes, failing](FakeDisk::Call call) {
      const bool fails = call == FakeDisk::Call::kWrite && ++num_writes == failing;
      return fails ? absl::UnavailableError("EIO") : absl::OkStatus();
    });
    Journal journal;
    Play(journal, /*goes_on=*/true);
    const bool has_failed = num_writes >= failing;
    log_.reset();
    disk_ = disk_->Crash(GetParam() + static_cast<uint32_t>(failing));
    ASSERT_THAT(Open(), IsOk()) << "write " << failing;
    for (uint64_t id = 1; id <= 24; ++id) {
      SCOPED_TRACE(absl::StrCat("write ", failing, ", object ", id));
      CheckServed(id, journal.synced.contains(id));
      const bool is_erased = journal.erased_and_synced.contains(id);
      EXPECT_FALSE(is_erased && log_->Find(Object(id).key()).has_value());
    }
    if (!has_failed) break;
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, SegmentLogCrashTest, ::testing::Values(1u, 1000u, 2000u, 3000u));

}  // namespace
}  // namespace pkv
