#include "worker/sequence/bank.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/support/sealed_object.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

constexpr KvShape kShape{2, 1, 64};

ObjectHeader Table(uint64_t id, int num_k, int num_v) {
  ObjectHeader header = TestHeader(ObjectKind::kTable, id, kShape.num_layers);
  header.num_patterns_k = static_cast<uint16_t>(num_k);
  header.num_patterns_v = static_cast<uint16_t>(num_v);
  return header;
}

// A block that was encoded against `num_k` and `num_v` patterns of a table, then appended by
// `flags`.
ObjectHeader Block(uint64_t table, int num_k, int num_v, uint8_t flags = 0) {
  ObjectHeader header = TestHeader(ObjectKind::kBlock, 100, kShape.num_layers);
  header.table = TestDigest(table);
  header.flags = kFlagHasPatterns | flags;
  header.num_patterns_k = static_cast<uint16_t>(num_k);
  header.num_patterns_v = static_cast<uint16_t>(num_v);
  return header;
}

SequenceBanks BanksOf(std::initializer_list<ObjectHeader> tables) {
  SequenceBanks banks(kShape);
  for (const ObjectHeader& table : tables) {
    banks.AddTable(table.id, table.num_patterns_k, table.num_patterns_v);
  }
  return banks;
}

TEST(SequenceBanksTest, HasNoBankBeforeTheFirstTable) {
  SequenceBanks banks(kShape);
  EXPECT_EQ(banks.Current(), nullptr);
  EXPECT_EQ(banks.Find(TestDigest(1)), nullptr);
  EXPECT_EQ(banks.Find(Digest{}), nullptr);
}

TEST(SequenceBanksTest, GivesEachTableACodebookPerLayer) {
  SequenceBanks banks = BanksOf({Table(1, 32, 16)});
  ASSERT_NE(banks.Current(), nullptr);
  EXPECT_EQ(banks.Current(), banks.Find(TestDigest(1)));
  EXPECT_EQ(banks.Current()->num_k, 32);
  EXPECT_EQ(banks.Current()->num_v, 16);
  ASSERT_EQ(banks.Current()->layers.size(), 2u);
  EXPECT_EQ(banks.Current()->layers[1].head_dim(), 64);
}

TEST(SequenceBanksTest, DoesNotAddAKnownTableTwice) {
  SequenceBanks banks = BanksOf({Table(1, 32, 32), Table(2, 32, 32), Table(1, 32, 32)});
  EXPECT_EQ(banks.banks().size(), 2u);
  EXPECT_EQ(banks.Current(), banks.Find(TestDigest(1)));
}

TEST(SequenceBanksTest, CountsWhatBlocksAppendForKAndVApart) {
  SequenceBanks banks = BanksOf({Table(1, 3, 5)});
  ASSERT_THAT(banks.AddBlock(Block(1, 3, 5)), IsOk());
  ASSERT_THAT(banks.AddBlock(Block(1, 3, 5, kFlagAppendsK)), IsOk());
  ASSERT_THAT(banks.AddBlock(Block(1, 4, 5, kFlagAppendsV)), IsOk());
  ASSERT_THAT(banks.AddBlock(Block(1, 4, 6, kFlagAppendsK | kFlagAppendsV)), IsOk());
  EXPECT_EQ(banks.Current()->num_k, 5);
  EXPECT_EQ(banks.Current()->num_v, 7);
}

TEST(SequenceBanksTest, RefusesABlockOfAnotherBankSize) {
  SequenceBanks banks = BanksOf({Table(1, 3, 5)});
  ASSERT_THAT(banks.AddBlock(Block(1, 3, 5, kFlagAppendsK)), IsOk());
  EXPECT_THAT(banks.AddBlock(Block(1, 3, 5)),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       testing::AllOf(testing::HasSubstr("3+5"), testing::HasSubstr("4+5"))));
  EXPECT_EQ(banks.Current()->num_k, 4) << "a refused block changes nothing";
}

TEST(SequenceBanksTest, RefusesABlockWhoseTableIsNotThere) {
  SequenceBanks banks = BanksOf({Table(1, 3, 5)});
  EXPECT_THAT(banks.AddBlock(Block(2, 3, 5)),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       testing::HasSubstr(TestDigest(2).ToShortHex())));
}

TEST(SequenceBanksTest, RefusesABlockOfASecondTable) {
  SequenceBanks banks = BanksOf({Table(1, 3, 3), Table(2, 8, 8)});
  ASSERT_THAT(banks.AddBlock(Block(1, 3, 3)), IsOk());
  EXPECT_EQ(banks.Current(), banks.Find(TestDigest(1)));
  EXPECT_THAT(banks.AddBlock(Block(2, 8, 8)),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       testing::AllOf(testing::HasSubstr(TestDigest(1).ToShortHex()),
                                      testing::HasSubstr(TestDigest(2).ToShortHex()))));
  EXPECT_EQ(banks.Current(), banks.Find(TestDigest(1)));
}

TEST(SequenceBanksTest, IgnoresBlocksWithoutPatterns) {
  SequenceBanks banks(kShape);
  EXPECT_THAT(banks.AddBlock(TestHeader(ObjectKind::kBlock, 7, 2)), IsOk());
  EXPECT_EQ(banks.Current(), nullptr);
}

TEST(SequenceBanksTest, FindsAMinedTableOnceItIsNamed) {
  SequenceBanks banks(kShape);
  banks.AddTable(Digest{}, 4, 4);
  EXPECT_EQ(banks.Find(Digest{}), nullptr) << "zero names no table";
  banks.NameCurrent(TestDigest(9));
  EXPECT_EQ(banks.Find(TestDigest(9)), banks.Current());
}

TEST(UsableBlocksTest, CountsUpToTheFirstBreakOfTheChain) {
  const std::vector<ObjectHeader> tables = {Table(1, 3, 3)};
  std::vector<ObjectHeader> blocks = {Block(1, 3, 3), Block(1, 3, 3, kFlagAppendsV), Block(1, 3, 4),
                                      Block(1, 3, 4)};
  EXPECT_EQ(UsableBlocks(kShape, tables, blocks), 4);
  blocks[2] = Block(1, 3, 3);
  EXPECT_EQ(UsableBlocks(kShape, tables, blocks), 2);
  blocks[0] = Block(2, 3, 3);
  EXPECT_EQ(UsableBlocks(kShape, tables, blocks), 0);
  EXPECT_EQ(UsableBlocks(kShape, std::vector{Table(2, 3, 3), tables[0]}, blocks), 1)
      << "a chain has one table";
  EXPECT_EQ(UsableBlocks(kShape, tables, {}), 0);
}

}  // namespace
}  // namespace pkv
