#include "kvstore/store/lru.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace pkv {
namespace {

using ::testing::ElementsAre;

// Evicts everything that may go, in order.
std::vector<EvictionId> Drain(Lru& lru) {
  std::vector<EvictionId> order;
  while (const auto victim = lru.Victim()) {
    order.push_back(*victim);
    lru.Erase(*victim);
  }
  return order;
}

TEST(LruTest, HasNoVictimWhenEmpty) { EXPECT_FALSE(Lru().Victim()); }

TEST(LruTest, ChoosesTheOldestFirst) {
  Lru lru;
  for (EvictionId id : {10, 30, 20}) lru.Insert(id);
  EXPECT_THAT(Drain(lru), ElementsAre(10, 30, 20));
}

TEST(LruTest, MovesATouchedObjectBehindTheOthers) {
  Lru lru;
  for (EvictionId id : {1, 2, 3}) lru.Insert(id);
  lru.Touch(1);
  EXPECT_THAT(Drain(lru), ElementsAre(2, 3, 1));
}

TEST(LruTest, SkipsWhatMayNotGo) {
  Lru lru;
  for (EvictionId id : {1, 2}) lru.Insert(id);
  lru.SetEvictable(1, false);
  EXPECT_EQ(lru.Victim(), 2u);
  lru.SetEvictable(2, false);
  EXPECT_FALSE(lru.Victim());
}

TEST(LruTest, RemembersTheLastUseOfWhatMayGoAgain) {
  Lru lru;
  for (EvictionId id : {1, 2, 3}) lru.Insert(id);
  lru.SetEvictable(1, false);
  lru.SetEvictable(2, false);
  lru.Touch(1);
  lru.SetEvictable(1, true);
  lru.SetEvictable(2, true);
  EXPECT_THAT(Drain(lru), ElementsAre(2, 3, 1));
}

TEST(LruTest, SettingEvictableTwiceChangesNothing) {
  Lru lru;
  lru.Insert(1);
  lru.SetEvictable(1, false);
  lru.SetEvictable(1, false);
  lru.SetEvictable(1, true);
  lru.SetEvictable(1, true);
  EXPECT_THAT(Drain(lru), ElementsAre(1));
}

TEST(LruDeathTest, StopsAtAnObjectItDoesNotKnow) {
  Lru lru;
  EXPECT_DEATH(lru.Touch(5), "unknown object 5");
  lru.Insert(5);
  EXPECT_DEATH(lru.Insert(5), "inserted twice");
}

}  // namespace
}  // namespace pkv
