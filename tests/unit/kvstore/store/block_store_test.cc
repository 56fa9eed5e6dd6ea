#include "kvstore/store/block_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

#include "tests/support/status_matchers.h"
#include "tests/unit/kvstore/store/store_fixture.h"

namespace pkv {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using BlockStoreTest = StoreFixture;

// Windows take one unit each; a block of two layers takes three.
constexpr uint64_t kBlockUnits = 3;

TEST_F(BlockStoreTest, FindsWhatWasCommitted) {
  MakeStore(4);
  const SealedObject object = MakeTestWindow(2, 1);
  EXPECT_THAT(Put(object), IsOkAndHolds(CommitResult::kStored));
  const Lease lease = store_->Find(object.key());
  ASSERT_TRUE(lease);
  EXPECT_TRUE(std::ranges::equal(lease.bytes(), object.bytes()));
}

TEST_F(BlockStoreTest, ShowsNothingBeforeCommit) {
  MakeStore(4);
  const SealedObject object = MakeTestWindow(2, 1);
  absl::StatusOr<Reservation> reservation = ReserveAndWrite(object);
  ASSERT_THAT(reservation, IsOk());
  EXPECT_FALSE(store_->Find(object.key()));
  EXPECT_EQ(store_->stats().reserved_bytes, kArenaUnitBytes);
  EXPECT_EQ(store_->stats().num_objects, 0u);
}

TEST_F(BlockStoreTest, RefusesImpossibleSizes) {
  MakeStore(4);
  const ObjectKey key = MakeTestWindow(2, 1).key();
  for (const int num_layers : {0, -1, kMaxLayers + 1}) {
    EXPECT_THAT(store_->Reserve({key, num_layers, 256}),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("num_layers")));
  }
  for (const uint64_t frame_bytes : {uint64_t{0}, uint64_t{100}, ~uint64_t{0}}) {
    EXPECT_THAT(store_->Reserve({key, 1, frame_bytes}),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("frame_bytes")));
  }
  EXPECT_THAT(store_->Reserve({key, 1024, uint64_t{1} << 63}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("overflows")));
}

TEST_F(BlockStoreTest, RefusesToReserveWhatIsStored) {
  MakeStore(4);
  const SealedObject object = MakeTestWindow(2, 1);
  ASSERT_THAT(Put(object), IsOk());
  EXPECT_THAT(Reserve(object), StatusIs(absl::StatusCode::kAlreadyExists));
}

TEST_F(BlockStoreTest, EvictsTheLeastRecentlyUsed) {
  MakeStore(3);
  const SealedObject a = MakeTestWindow(2, 1), b = MakeTestWindow(3, 1), c = MakeTestWindow(4, 1),
                     d = MakeTestWindow(5, 1);
  for (const SealedObject* object : {&a, &b, &c}) ASSERT_THAT(Put(*object), IsOk());
  clock_.Advance(absl::Seconds(5));
  EXPECT_TRUE(store_->Find(a.key()));
  clock_.Advance(absl::Seconds(2));
  ASSERT_THAT(Put(d), IsOk());
  EXPECT_TRUE(Has(a));
  EXPECT_FALSE(Has(b));
  EXPECT_TRUE(Has(c));
  ASSERT_EQ(observer_.evictions.size(), 1u);
  EXPECT_EQ(observer_.evictions[0].reason, EvictionReason::kCapacity);
  EXPECT_EQ(observer_.evictions[0].object_bytes, b.bytes().size());
  EXPECT_EQ(observer_.evictions[0].idle, absl::Seconds(7));
  EXPECT_EQ(store_->stats().num_evictions, 1u);
}

TEST_F(BlockStoreTest, LosesTheLastBlocksOfASequenceFirst) {
  MakeStore(4);
  std::vector<ObjectKey> keys;
  for (int i = 0; i < 4; ++i) {
    const SealedObject object = MakeTestWindow(10 + i, 1);
    ASSERT_THAT(Put(object), IsOk());
    keys.push_back(object.key());
  }
  store_->TouchAll(keys);
  ASSERT_THAT(Put(MakeTestWindow(20, 1)), IsOk());
  EXPECT_FALSE(store_->Find(keys[3]));
  EXPECT_EQ(store_->FindAll(std::span(keys).first(3)).size(), 3u);
  ASSERT_THAT(Put(MakeTestWindow(21, 1)), IsOk());
  ASSERT_THAT(Put(MakeTestWindow(22, 1)), IsOk());
  EXPECT_TRUE(store_->Stat(keys[0]));
  EXPECT_FALSE(store_->Stat(keys[2]));
}

TEST_F(BlockStoreTest, NeverEvictsAPinnedObject) {
  MakeStore(2);
  const SealedObject a = MakeTestWindow(2, 1), b = MakeTestWindow(3, 1);
  ASSERT_THAT(Put(a), IsOk());
  ASSERT_THAT(Put(b), IsOk());
  {
    const Lease lease = store_->Find(a.key());
    ASSERT_THAT(Put(MakeTestWindow(4, 1)), IsOk());
    EXPECT_FALSE(Has(b));
    const Lease other = store_->Find(MakeTestWindow(4, 1).key());
    EXPECT_THAT(
        Put(MakeTestWindow(5, 1)),
        StatusIs(absl::StatusCode::kResourceExhausted,
                 AllOf(HasSubstr("896 bytes"), HasSubstr("free 0"), HasSubstr("pinned 8192"))));
    EXPECT_TRUE(std::ranges::equal(lease.bytes(), a.bytes()));
  }
  EXPECT_THAT(Put(MakeTestWindow(5, 1)), IsOk());
}

TEST_F(BlockStoreTest, EvictsNothingForWhatCannotFit) {
  MakeStore(4);
  const SealedObject small = MakeTestWindow(2, 1);
  ASSERT_THAT(Put(small), IsOk());
  EXPECT_THAT(Put(MakeTestWindow(3, 1, 64)), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_TRUE(Has(small));
  EXPECT_THAT(observer_.evictions, IsEmpty());
}

TEST_F(BlockStoreTest, CountsReservationsAgainstTheCapacity) {
  MakeStore(2);
  absl::StatusOr<Reservation> first = Reserve(MakeTestWindow(2, 1));
  absl::StatusOr<Reservation> second = Reserve(MakeTestWindow(3, 1));
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_THAT(Reserve(MakeTestWindow(4, 1)), StatusIs(absl::StatusCode::kResourceExhausted));
  *first = Reservation();
  EXPECT_THAT(Reserve(MakeTestWindow(4, 1)), IsOk());
}

TEST_F(BlockStoreTest, RefusesToCommitAnIncompleteFrame) {
  MakeStore(4);
  const SealedObject object = MakeTestWindow(2, 1);
  Reservation reservation = Reserve(object).value();
  ASSERT_THAT(reservation.Write(0, 0, object.frame(0)), IsOk());
  ASSERT_THAT(reservation.Write(1, 0, object.frame(1).first(255)), IsOk());
  EXPECT_THAT(store_->Commit(std::move(reservation), object.head()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer 1 has 255 of 256")));
  EXPECT_EQ(store_->stats().resident_bytes, 0u);
}

TEST_F(BlockStoreTest, RefusesBytesThatChangedOnTheWay) {
  MakeStore(4);
  const SealedObject object = MakeTestWindow(2, 1);
  Reservation reservation = Reserve(object).value();
  std::vector<std::byte> frame(object.frame(0).begin(), object.frame(0).end());
  frame[17] ^= std::byte{4};
  ASSERT_THAT(reservation.Write(0, 0, frame), IsOk());
  ASSERT_THAT(reservation.Write(1, 0, object.frame(1)), IsOk());
  EXPECT_THAT(store_->Commit(std::move(reservation), object.head()),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("layer 0")));
  EXPECT_THAT(observer_.failures, ElementsAre(IntegrityStage::kWire));
  EXPECT_FALSE(Has(object));
}

TEST_F(BlockStoreTest, RefusesAHeadThatChangedOnTheWay) {
  MakeStore(4);
  const SealedObject object = MakeTestWindow(2, 1);
  for (const size_t at : {size_t{100}, sizeof(ObjectHeader) + 1, object.head().size() - 1}) {
    std::vector<std::byte> head(object.head().begin(), object.head().end());
    head[at] ^= std::byte{1};
    EXPECT_THAT(store_->Commit(ReserveAndWrite(object).value(), head),
                StatusIs(absl::StatusCode::kDataLoss))
        << at;
  }
  EXPECT_THAT(store_->Commit(ReserveAndWrite(object).value(), {}),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(observer_.failures.size(), 4u);
}

TEST_F(BlockStoreTest, RefusesTheHeadOfAnotherObject) {
  MakeStore(4);
  const SealedObject object = MakeTestWindow(2, 1), other = MakeTestWindow(3, 1);
  EXPECT_THAT(store_->Commit(ReserveAndWrite(object).value(), other.head()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("as begun")));
  EXPECT_THAT(store_->Commit(ReserveAndWrite(object).value(), MakeTestWindow(2, 1, 1, 3).head()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("3 layers of 256 bytes")));
}

TEST_F(BlockStoreTest, TakesEqualBytesTwice) {
  MakeStore(4);
  const SealedObject object = MakeTestWindow(2, 1);
  Reservation late = ReserveAndWrite(object).value();
  ASSERT_THAT(Put(object), IsOkAndHolds(CommitResult::kStored));
  EXPECT_THAT(store_->Commit(std::move(late), object.head()),
              IsOkAndHolds(CommitResult::kDuplicate));
  EXPECT_EQ(store_->stats().resident_bytes, kArenaUnitBytes);
}

TEST_F(BlockStoreTest, RefusesDifferentBytesUnderOneKey) {
  MakeStore(4);
  const SealedObject object = MakeTestWindow(2, 1), other = MakeTestWindow(2, 99);
  Reservation late = ReserveAndWrite(other).value();
  ASSERT_THAT(Put(object), IsOk());
  EXPECT_THAT(store_->Commit(std::move(late), other.head()),
              StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_TRUE(std::ranges::equal(store_->Find(object.key()).bytes(), object.bytes()));
}

TEST_F(BlockStoreTest, ReplacesARottenObjectByTheOneThatArrives) {
  MakeStore(4);
  const SealedObject object = MakeTestWindow(2, 1);
  Reservation late = ReserveAndWrite(object).value();
  ASSERT_THAT(Put(object), IsOk());
  FlipBit(store_->Find(object.key()), object.head().size() + 5);
  EXPECT_THAT(store_->Commit(std::move(late), object.head()), IsOkAndHolds(CommitResult::kStored));
  EXPECT_THAT(observer_.failures, ElementsAre(IntegrityStage::kDram));
  EXPECT_TRUE(std::ranges::equal(store_->Find(object.key()).bytes(), object.bytes()));
}

TEST_F(BlockStoreTest, RefusesABlockWithoutItsTable) {
  MakeStore(16);
  const SealedObject table = MakeTestTable(1), block = MakeTestBlock(2, 1, table.header.id);
  EXPECT_THAT(Put(block),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("TableMissing")));
  ASSERT_THAT(Put(table), IsOk());
  EXPECT_THAT(Put(block), IsOkAndHolds(CommitResult::kStored));
}

// A block that follows the one with id 2, against `num_v` V patterns.
SealedObject MakeSecondBlock(uint64_t id, const Digest& table, int num_v) {
  ObjectHeader header = MakeTestBlock(id, 1, table).header;
  header.parent = TestDigest(2);
  header.first_token = kBlockTokens;
  header.num_patterns_v = static_cast<uint16_t>(num_v);
  return SealTestObject(header, 1, 4096);
}

TEST_F(BlockStoreTest, RefusesABlockThatDoesNotContinueItsParentsBank) {
  MakeStore(64);
  const SealedObject table = MakeTestTable(1), other = MakeTestTable(2);
  ASSERT_THAT(Put(table), IsOk());
  ASSERT_THAT(Put(other), IsOk());
  ObjectHeader header = MakeTestBlock(2, 1, table.header.id).header;
  header.flags |= kFlagAppendsV;
  const SealedObject parent = SealTestObject(header, 1, 4096);
  ASSERT_THAT(Put(parent), IsOk());

  EXPECT_THAT(Put(MakeSecondBlock(3, other.header.id, 3)),
              StatusIs(absl::StatusCode::kAlreadyExists,
                       AllOf(HasSubstr("ChainTaken"), HasSubstr(table.header.id.ToShortHex()))));
  EXPECT_THAT(Put(MakeSecondBlock(3, table.header.id, 2)),
              StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("2+3")))
      << "the parent has appended one V pattern";
  EXPECT_THAT(Put(MakeSecondBlock(3, table.header.id, 3)), IsOkAndHolds(CommitResult::kStored));

  // Without its parent a block of any chain may come.
  ASSERT_EQ(store_->Delete(parent.key()), DeleteResult::kDeleted);
  EXPECT_THAT(Put(MakeSecondBlock(4, other.header.id, 2)), IsOkAndHolds(CommitResult::kStored));
}

TEST_F(BlockStoreTest, KeepsATableAsLongAsItsBlocks) {
  MakeStore(1 + 2 * kBlockUnits);
  const SealedObject table = MakeTestTable(1), block = MakeTestBlock(2, 1, table.header.id);
  ASSERT_THAT(Put(table), IsOk());
  ASSERT_THAT(Put(block), IsOk());
  EXPECT_EQ(store_->Delete(table.key()), DeleteResult::kInUse);
  // The table is the oldest by far, but others have to go before it.
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(store_->Find(block.key()));
    ASSERT_THAT(Put(MakeTestBlock(10 + i, 1)), IsOk());
    EXPECT_TRUE(Has(table));
  }
  EXPECT_EQ(store_->Delete(block.key()), DeleteResult::kDeleted);
  EXPECT_EQ(store_->Delete(table.key()), DeleteResult::kDeleted);
}

TEST_F(BlockStoreTest, DropsADamagedTableWithItsBlocks) {
  MakeStore(16);
  const SealedObject table = MakeTestTable(1), block = MakeTestBlock(2, 1, table.header.id),
                     other = MakeTestBlock(3, 1);
  for (const SealedObject* object : {&table, &block, &other}) ASSERT_THAT(Put(*object), IsOk());
  store_->Quarantine(store_->Find(table.key()));
  EXPECT_FALSE(Has(table));
  EXPECT_FALSE(Has(block));
  EXPECT_TRUE(Has(other));
  EXPECT_THAT(observer_.failures, ElementsAre(IntegrityStage::kDram));
  ASSERT_EQ(observer_.evictions.size(), 1u);
  EXPECT_EQ(observer_.evictions[0].reason, EvictionReason::kIntegrity);
}

TEST_F(BlockStoreTest, CountsADamagedObjectOnce) {
  MakeStore(4);
  const SealedObject object = MakeTestWindow(2, 1);
  ASSERT_THAT(Put(object), IsOk());
  const Lease first = store_->Find(object.key()), second = store_->Find(object.key());
  store_->Quarantine(first);
  store_->Quarantine(second);
  EXPECT_EQ(observer_.failures.size(), 1u);
  EXPECT_FALSE(Has(object));
}

TEST_F(BlockStoreTest, DeletesIdempotently) {
  MakeStore(4);
  const SealedObject object = MakeTestWindow(2, 1);
  EXPECT_EQ(store_->Delete(object.key()), DeleteResult::kAbsent);
  ASSERT_THAT(Put(object), IsOk());
  EXPECT_EQ(store_->Delete(object.key()), DeleteResult::kDeleted);
  EXPECT_EQ(store_->Delete(object.key()), DeleteResult::kAbsent);
  EXPECT_EQ(store_->stats().resident_bytes, 0u);
}

TEST_F(BlockStoreTest, StoresAgainWhileADeletedCopyIsStillPinned) {
  MakeStore(4);
  const SealedObject before = MakeTestWindow(2, 1), after = MakeTestWindow(2, 50);
  ASSERT_THAT(Put(before), IsOk());
  const Lease lease = store_->Find(before.key());
  EXPECT_EQ(store_->Delete(before.key()), DeleteResult::kDeleted);
  ASSERT_THAT(Put(after), IsOkAndHolds(CommitResult::kStored));
  EXPECT_TRUE(std::ranges::equal(lease.bytes(), before.bytes()));
  EXPECT_TRUE(std::ranges::equal(store_->Find(after.key()).bytes(), after.bytes()));
}

TEST_F(BlockStoreTest, MeasuresIdleTimeSinceTheLastUse) {
  MakeStore(4);
  const SealedObject object = MakeTestWindow(2, 1);
  ASSERT_THAT(Put(object), IsOk());
  clock_.Advance(absl::Seconds(3));
  EXPECT_EQ(store_->Stat(object.key())->idle, absl::Seconds(3));
  EXPECT_EQ(store_->Stat(object.key())->idle, absl::Seconds(3)) << "a Stat is no use";
  EXPECT_TRUE(store_->Find(object.key()));
  EXPECT_EQ(store_->Stat(object.key())->idle, absl::ZeroDuration());
}

TEST_F(BlockStoreTest, FindsTheLongestPrefixOverVariants) {
  MakeStore(64);
  const SealedObject table = MakeTestTable(1), first = MakeTestBlock(2, 1, table.header.id),
                     second = MakeTestBlock(3, 1, table.header.id), fourth = MakeTestBlock(5, 1);
  for (const SealedObject* object : {&table, &first, &second, &fourth}) {
    ASSERT_THAT(Put(*object), IsOk());
  }
  const std::vector<Digest> ids = {TestDigest(2), TestDigest(3), TestDigest(4), TestDigest(5)};
  const std::vector<Variant> variants = {{"absent", 7}, {"test", 7}, {"test", 8}};
  const PrefixMatch match = store_->LongestPrefix(ids, variants);
  EXPECT_EQ(match.variant_index, 1);
  EXPECT_EQ(match.num_blocks, 2) << "the hole ends the prefix";
  EXPECT_EQ(match.bytes, first.bytes().size() + second.bytes().size());
  EXPECT_THAT(match.table_ids, ElementsAre(table.header.id));
  EXPECT_THAT(match.blocks_per_variant, ElementsAre(0, 2, 0));
}

TEST_F(BlockStoreTest, MissesAsAnEmptyPrefix) {
  MakeStore(4);
  const PrefixMatch match =
      store_->LongestPrefix(std::vector<Digest>{TestDigest(2)}, std::vector<Variant>{{"test", 7}});
  EXPECT_EQ(match.num_blocks, 0);
  EXPECT_THAT(match.table_ids, IsEmpty());
  EXPECT_EQ(store_->LongestPrefix({}, {}).num_blocks, 0);
}

}  // namespace
}  // namespace pkv
