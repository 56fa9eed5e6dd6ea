// BlockStore over a log on disk: what is on disk alone, and what is in both.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/support/status_matchers.h"
#include "tests/unit/kvstore/store/store_fixture.h"

namespace pkv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class BlockStoreTiersTest : public StoreFixture {
 protected:
  void SetUp() override {
    MakeLog();
    MakeStore(64);
    table_ = MakeTestTable(1);
    for (uint64_t id : {11, 12, 13}) blocks_.push_back(MakeTestBlock(id, 1, table_.header.id));
  }
  void PutAll() {
    ASSERT_THAT(Put(table_), IsOk());
    for (const SealedObject& block : blocks_) ASSERT_THAT(Put(block), IsOk());
  }
  // Tables last: in memory they may not go before their blocks.
  void MoveAllToDisk() {
    WriteToDisk(table_);
    for (const SealedObject& block : blocks_) MoveToDisk(block);
    MoveToDisk(table_);
  }
  PrefixMatch Lookup() const {
    std::vector<Digest> ids;
    for (const SealedObject& block : blocks_) ids.push_back(block.header.id);
    const Variant variants[] = {blocks_[0].header.variant()};
    return store_->LongestPrefix(ids, variants);
  }
  // Brings one object in, as a Pager does.
  absl::StatusOr<Lease> PageIn(const SealedObject& object) {
    const LogRecord record = log_->Find(object.key()).value();
    absl::StatusOr<Reservation> reservation = Reserve(object);
    if (!reservation.ok()) return reservation.status();
    EXPECT_THAT(log_->Read(record, reservation->units()), IsOk());
    return store_->PublishFromDisk(*std::move(reservation), record);
  }
  static std::vector<ObjectKey> Keys(const std::vector<DiskCopy>& copies) {
    std::vector<ObjectKey> keys;
    for (const DiskCopy& copy : copies) keys.push_back(copy.key);
    return keys;
  }

  SealedObject table_;
  std::vector<SealedObject> blocks_;
};

TEST_F(BlockStoreTiersTest, LookupSeesBothTiers) {
  PutAll();
  WriteToDisk(table_);
  MoveToDisk(blocks_[1]);
  const PrefixMatch match = Lookup();
  EXPECT_EQ(match.num_blocks, 3);
  EXPECT_EQ(match.bytes, 3 * blocks_[0].bytes().size());
  EXPECT_EQ(match.ssd_bytes, blocks_[1].bytes().size());
  EXPECT_THAT(match.table_ids, ElementsAre(table_.header.id));
}

TEST_F(BlockStoreTiersTest, CountsNoBlockWhoseTableIsInNoTier) {
  PutAll();
  WriteToDisk(table_);
  for (const SealedObject& block : blocks_) MoveToDisk(block);
  EXPECT_EQ(Lookup().num_blocks, 3);
  MoveToDisk(table_);
  EXPECT_EQ(Lookup().num_blocks, 3);
  log_->Erase(table_.key());
  EXPECT_EQ(Lookup().num_blocks, 0);
  EXPECT_FALSE(store_->FindOnDisk(blocks_[0].key()).has_value());
}

TEST_F(BlockStoreTiersTest, CountsNothingOnADiskThatRests) {
  PutAll();
  MoveAllToDisk();
  log_->SuspendReads(absl::Seconds(1));
  EXPECT_EQ(Lookup().num_blocks, 0);
  EXPECT_THAT(store_->PlanPageIn(std::vector{blocks_[0].key()}).others, IsEmpty());
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(Lookup().num_blocks, 3);
}

TEST_F(BlockStoreTiersTest, PlansTablesForTheBlocksThatNeedThem) {
  PutAll();
  MoveAllToDisk();
  const std::vector<ObjectKey> keys = {blocks_[1].key(), blocks_[0].key(),
                                       MakeTestBlock(99, 1).key()};
  const PageInPlan plan = store_->PlanPageIn(keys);
  EXPECT_THAT(Keys(plan.tables), ElementsAre(table_.key()));
  EXPECT_TRUE(plan.tables[0].is_implied);
  EXPECT_THAT(Keys(plan.others), ElementsAre(blocks_[1].key(), blocks_[0].key()));
  EXPECT_FALSE(
      store_->PlanPageIn(std::vector{blocks_[1].key(), table_.key()}).tables[0].is_implied);
}

TEST_F(BlockStoreTiersTest, PublishesWhatCameFromDisk) {
  PutAll();
  MoveAllToDisk();
  EXPECT_THAT(PageIn(blocks_[0]), StatusIs(absl::StatusCode::kNotFound, HasSubstr("table")));
  ASSERT_THAT(PageIn(table_), IsOk());
  const absl::StatusOr<Lease> lease = PageIn(blocks_[0]);
  ASSERT_THAT(lease, IsOk());
  EXPECT_TRUE(std::ranges::equal(lease->bytes(), blocks_[0].bytes()));
  EXPECT_TRUE(Has(blocks_[0]));
  EXPECT_EQ(Lookup().ssd_bytes, 2 * blocks_[0].bytes().size());
}

TEST_F(BlockStoreTiersTest, ServesNothingThatIsDamagedOnDisk) {
  const SealedObject window = MakeTestWindow(5, 1);
  for (const uint64_t offset : {uint64_t{100}, window.bytes().size() - 1}) {
    ASSERT_THAT(Put(window), IsOk());
    MoveToDisk(window);
    FlipBitOnDisk(window, offset);
    EXPECT_THAT(PageIn(window), StatusIs(absl::StatusCode::kDataLoss));
    EXPECT_FALSE(Has(window));
    EXPECT_FALSE(log_->Find(window.key()).has_value());
  }
  EXPECT_THAT(observer_.failures, ElementsAre(IntegrityStage::kSsd, IntegrityStage::kSsd));
}

TEST_F(BlockStoreTiersTest, RaisesNothingThatWasDeletedWhileItWasRead) {
  const SealedObject window = MakeTestWindow(5, 1);
  ASSERT_THAT(Put(window), IsOk());
  MoveToDisk(window);
  const LogRecord record = log_->Find(window.key()).value();
  Reservation reservation = Reserve(window).value();
  ASSERT_THAT(log_->Read(record, reservation.units()), IsOk());
  EXPECT_EQ(store_->Delete(window.key()), DeleteResult::kDeleted);
  EXPECT_THAT(store_->PublishFromDisk(std::move(reservation), record),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_FALSE(Has(window));
}

TEST_F(BlockStoreTiersTest, DiscardsWhatWasDeletedWhileItWasWritten) {
  const SealedObject window = MakeTestWindow(5, 1);
  ASSERT_THAT(Put(window), IsOk());
  const std::optional<DemotionCandidate> candidate = store_->FindToDemote(window.key());
  EXPECT_EQ(store_->Delete(window.key()), DeleteResult::kDeleted);
  store_->PublishDemoted(candidate->lease, {.segment = 1, .offset = 4096, .object_bytes = 1});
  EXPECT_FALSE(log_->Find(window.key()).has_value());
  EXPECT_TRUE(log_->HasTombstones());
}

TEST_F(BlockStoreTiersTest, DeletesFromBothTiers) {
  PutAll();
  WriteToDisk(table_);
  WriteToDisk(blocks_[0]);
  MoveToDisk(blocks_[1]);
  EXPECT_EQ(store_->Delete(blocks_[0].key()), DeleteResult::kDeleted);
  EXPECT_EQ(store_->Delete(blocks_[2].key()), DeleteResult::kDeleted);
  // A block on disk alone refers to it.
  EXPECT_EQ(store_->Delete(table_.key()), DeleteResult::kInUse);
  EXPECT_EQ(store_->Delete(blocks_[1].key()), DeleteResult::kDeleted);
  EXPECT_EQ(store_->Delete(blocks_[1].key()), DeleteResult::kAbsent);
  EXPECT_EQ(store_->Delete(table_.key()), DeleteResult::kDeleted);
  EXPECT_EQ(log_->stats().num_objects, 0u);
}

TEST_F(BlockStoreTiersTest, TakesEqualBytesForADuplicateAndOthersForAConflict) {
  const SealedObject window = MakeTestWindow(5, 1);
  ASSERT_THAT(Put(window), IsOk());
  MoveToDisk(window);
  EXPECT_TRUE(IsHeadOf(window.head(), store_->FindOnDisk(window.key()).value()));
  EXPECT_THAT(Put(MakeTestWindow(5, 2)),
              StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("on disk")));
  EXPECT_THAT(Put(window), IsOkAndHolds(CommitResult::kDuplicate));
  EXPECT_TRUE(Has(window));
}

// Its table is gone, so that nobody could read it, and it would keep a usable one out for good.
TEST_F(BlockStoreTiersTest, ReplacesABlockOnDiskThatLostItsTable) {
  PutAll();
  MoveAllToDisk();
  log_->Erase(table_.key());
  const SealedObject other_table = MakeTestTable(2);
  ASSERT_THAT(Put(other_table), IsOk());
  const SealedObject other = MakeTestBlock(11, 1, other_table.header.id);
  EXPECT_THAT(Put(other), IsOkAndHolds(CommitResult::kStored));
  EXPECT_FALSE(log_->Find(other.key()).has_value());
}

// A prefill worker that missed computes anew, and its banks may differ.
TEST_F(BlockStoreTiersTest, TakesWhatDiffersFromADiskThatRests) {
  PutAll();
  MoveAllToDisk();
  const SealedObject other_table = MakeTestTable(2);
  ASSERT_THAT(Put(other_table), IsOk());
  const SealedObject other = MakeTestBlock(11, 1, other_table.header.id);
  ObjectHeader header = MakeTestBlock(20, 1, other_table.header.id).header;
  header.first_token = kBlockTokens;
  header.parent = blocks_[1].header.id;
  const SealedObject next = SealTestObject(header, 1, 4096);
  EXPECT_THAT(Put(other), StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_THAT(Put(next), StatusIs(absl::StatusCode::kAlreadyExists));
  log_->SuspendReads(absl::Seconds(1));
  EXPECT_THAT(Put(other), IsOkAndHolds(CommitResult::kStored));
  EXPECT_FALSE(log_->Find(other.key()).has_value());
  EXPECT_THAT(Put(next), IsOkAndHolds(CommitResult::kStored));
}

TEST_F(BlockStoreTiersTest, HoldsAChainTogetherAcrossTiers) {
  PutAll();
  MoveAllToDisk();
  const SealedObject other_table = MakeTestTable(2);
  ASSERT_THAT(Put(other_table), IsOk());
  ObjectHeader header = MakeTestBlock(20, 1, other_table.header.id).header;
  header.first_token = kBlockTokens;
  header.parent = blocks_[0].header.id;
  EXPECT_THAT(Put(SealTestObject(header, 1, 4096)),
              StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("ChainTaken")));
  header.table = table_.header.id;
  EXPECT_THAT(Put(SealTestObject(header, 1, 4096)),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("TableMissing")));
  EXPECT_THAT(Put(table_), IsOkAndHolds(CommitResult::kDuplicate));
  EXPECT_THAT(Put(SealTestObject(header, 1, 4096)), IsOkAndHolds(CommitResult::kStored));
}

TEST_F(BlockStoreTiersTest, TellsEvictedFromDemoted) {
  MakeStore(2);
  ASSERT_THAT(Put(MakeTestWindow(1, 1)), IsOk());
  ASSERT_THAT(Put(MakeTestWindow(2, 1)), IsOk());
  WriteToDisk(MakeTestWindow(1, 1));
  ASSERT_THAT(Put(MakeTestWindow(3, 1)), IsOk());
  ASSERT_THAT(Put(MakeTestWindow(4, 1)), IsOk());
  ASSERT_THAT(observer_.evictions, SizeIs(2));
  EXPECT_EQ(observer_.evictions[0].reason, EvictionReason::kDemoted);
  EXPECT_EQ(observer_.evictions[1].reason, EvictionReason::kCapacity);
  EXPECT_EQ(store_->stats().num_evictions, 1u);
}

TEST_F(BlockStoreTiersTest, LetsGoOfNothingInUse) {
  const SealedObject window = MakeTestWindow(5, 1);
  ASSERT_THAT(Put(window), IsOk());
  std::optional<DemotionCandidate> candidate = store_->NextToDemote();
  ASSERT_TRUE(candidate.has_value());
  EXPECT_FALSE(candidate->was_reused);
  EXPECT_FALSE(candidate->is_on_disk);
  EXPECT_FALSE(store_->NextToDemote().has_value());  // it is pinned
  {
    const Lease reader = store_->Find(window.key());
    EXPECT_FALSE(store_->LetGo(std::move(candidate->lease), candidate->last_use));
  }
  candidate = store_->NextToDemote();
  clock_.Advance(absl::Seconds(1));
  store_->TouchAll(std::vector{window.key()});
  EXPECT_FALSE(store_->LetGo(std::move(candidate->lease), candidate->last_use));
  EXPECT_TRUE(Has(window));
}

TEST_F(BlockStoreTiersTest, NamesTheTableThatHasToBeOnDiskFirst) {
  PutAll();
  EXPECT_TRUE(store_->FindToDemote(blocks_[0].key())->table);
  WriteToDisk(table_);
  EXPECT_FALSE(store_->FindToDemote(blocks_[0].key())->table);
  EXPECT_FALSE(store_->FindToDemote(table_.key())->is_needed);
  WriteToDisk(blocks_[0]);
  EXPECT_TRUE(store_->FindToDemote(table_.key())->is_needed);
  EXPECT_TRUE(store_->FindToDemote(blocks_[0].key())->is_on_disk);
}

TEST_F(BlockStoreTiersTest, ListsTheMostRecentlyUsedFirst) {
  for (const uint64_t id : {1, 2, 3}) {
    clock_.Advance(absl::Seconds(1));
    ASSERT_THAT(Put(MakeTestWindow(id, 1)), IsOk());
  }
  clock_.Advance(absl::Seconds(1));
  store_->TouchAll(std::vector{MakeTestWindow(2, 1).key()});
  std::vector<ObjectKey> keys;
  for (const BlockStore::Listed& listed : store_->ListByLastUse()) {
    EXPECT_EQ(listed.object_bytes, MakeTestWindow(1, 1).bytes().size());
    keys.push_back(listed.key);
  }
  EXPECT_THAT(keys, ElementsAre(MakeTestWindow(2, 1).key(), MakeTestWindow(3, 1).key(),
                                MakeTestWindow(1, 1).key()));
}

// Every block is got once after its put: that is no reuse.
TEST_F(BlockStoreTiersTest, TakesTheSecondGetForAReuse) {
  const SealedObject window = MakeTestWindow(5, 1);
  const auto was_reused = [&] { return store_->FindToDemote(window.key())->was_reused; };
  ASSERT_THAT(Put(window), IsOk());
  for (const Use use : {Use::kNone, Use::kPut, Use::kPut, Use::kGet}) {
    EXPECT_TRUE(store_->Find(window.key(), use));
    EXPECT_FALSE(was_reused());
  }
  store_->Find(window.key(), Use::kGet);
  EXPECT_TRUE(was_reused());
  // One that comes back from disk is got for the second time, at least.
  MoveToDisk(window);
  ASSERT_THAT(PageIn(window), IsOk());
  EXPECT_FALSE(was_reused());
  store_->Find(window.key(), Use::kGet);
  EXPECT_TRUE(was_reused());
}

TEST_F(BlockStoreTiersTest, CountsNoUseThatIsNone) {
  ASSERT_THAT(Put(MakeTestWindow(1, 1)), IsOk());
  clock_.Advance(absl::Seconds(5));
  store_->Find(MakeTestWindow(1, 1).key(), Use::kNone);
  EXPECT_EQ(store_->Stat(MakeTestWindow(1, 1).key())->idle, absl::Seconds(5));
  store_->Find(MakeTestWindow(1, 1).key(), Use::kPut);
  EXPECT_EQ(store_->Stat(MakeTestWindow(1, 1).key())->idle, absl::ZeroDuration());
}

TEST_F(BlockStoreTiersTest, MakesRoomOnRequestOfWhatIsOnDiskAlone) {
  const SealedObject first = MakeTestTable(1), second = MakeTestTable(2), third = MakeTestTable(3);
  ASSERT_THAT(Put(first), IsOk());
  MakeStore(store_->stats().resident_bytes / kArenaUnitBytes);
  ASSERT_THAT(Put(first), IsOk());
  const ReservationSpec spec = {second.key(), second.header.num_layers, second.header.frame_bytes};
  EXPECT_THAT(store_->Reserve(spec, Room::kOfDemoted),
              StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_TRUE(Has(first));
  WriteToDisk(first);
  EXPECT_THAT(store_->Reserve(spec, Room::kOfDemoted), IsOk());
  EXPECT_FALSE(Has(first));
  ASSERT_THAT(Put(second), IsOk());
  EXPECT_THAT(Reserve(third), IsOk());
  EXPECT_FALSE(Has(second));
}

TEST_F(BlockStoreTiersTest, HoldsTheTablesInMemoryOfWhatIsToBeRead) {
  PutAll();
  WriteToDisk(table_);
  for (const SealedObject& block : blocks_) MoveToDisk(block);
  const std::vector<ObjectKey> keys = {blocks_[0].key(), blocks_[1].key()};
  EXPECT_EQ(store_->StoredBytes(keys), 2 * blocks_[0].bytes().size());
  std::optional<PageInPlan> plan = store_->PlanPageIn(keys);
  EXPECT_THAT(plan->tables, IsEmpty());
  EXPECT_THAT(plan->held, SizeIs(1));
  EXPECT_FALSE(store_->NextToDemote().has_value());
  plan.reset();
  EXPECT_TRUE(store_->NextToDemote().has_value());
}

TEST_F(BlockStoreTiersTest, TellsWhenItIsCrowded) {
  crowded_units_ = 1;
  MakeStore(4);
  ASSERT_THAT(Put(MakeTestWindow(1, 1)), IsOk());
  EXPECT_FALSE(store_->AwaitCrowded(absl::ZeroDuration()));
  ASSERT_THAT(Put(MakeTestWindow(2, 1)), IsOk());
  EXPECT_TRUE(store_->AwaitCrowded(absl::InfiniteDuration()));
  store_->StopWaiting();
  EXPECT_FALSE(store_->AwaitCrowded(absl::InfiniteDuration()));
}

TEST_F(BlockStoreTiersTest, FindsEverythingOnDiskAfterARestart) {
  PutAll();
  MoveAllToDisk();
  ASSERT_THAT(log_->Sync(), IsOk());
  store_.reset();
  MakeLog();
  MakeStore(64);
  EXPECT_EQ(Lookup().num_blocks, 3);
  EXPECT_EQ(Lookup().ssd_bytes, Lookup().bytes);
}

}  // namespace
}  // namespace pkv
