#include "client/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>

#include "absl/strings/str_cat.h"
#include "tests/support/sealed_object.h"

namespace pkv {
namespace {

using ::testing::ElementsAre;

std::vector<Digest> Chain(int num_ids) {
  std::vector<Digest> chain;
  for (int i = 0; i < num_ids; ++i) chain.push_back(TestDigest(static_cast<uint8_t>(i + 1)));
  return chain;
}

Digest NumberedAnchor(int i) {
  const std::string text = absl::StrCat(i);
  return Sha256({std::as_bytes(std::span(text))});
}

std::vector<std::string> Servers(int count) {
  std::vector<std::string> servers;
  for (int i = 0; i < count; ++i) servers.push_back(absl::StrCat("pkvd-", i, ".pkvd:7440"));
  return servers;
}

TEST(AnchorOfTest, IsTheEighthIdOrTheLastPowerOfTwoBelow) {
  EXPECT_EQ(AnchorOf({}), Digest{});
  for (const auto& [num_ids, anchor] :
       std::map<int, int>{{1, 1}, {2, 2}, {3, 2}, {4, 4}, {7, 4}, {8, 8}, {9, 8}, {200, 8}}) {
    EXPECT_EQ(AnchorOf(Chain(num_ids)), TestDigest(static_cast<uint8_t>(anchor))) << num_ids;
  }
}

// The ranking is a contract between all that share servers, of every release and language: these
// three were computed with sha256sum.
TEST(RankServersTest, RanksAsDocumented) {
  const std::vector<std::string> servers = {"a:7440", "b:7440", "c:7440"};
  EXPECT_THAT(RankServers(Digest{}, servers), ElementsAre(0, 1, 2));
  Digest ones;
  ones.bytes.fill(1);
  EXPECT_THAT(RankServers(ones, servers), ElementsAre(2, 1, 0));
  Digest twos;
  twos.bytes.fill(2);
  EXPECT_THAT(RankServers(twos, servers), ElementsAre(2, 1, 0));
}

TEST(RankServersTest, DoesNotDependOnTheOrderOfTheList) {
  const std::vector<std::string> servers = Servers(5);
  const std::vector<std::string> reversed(servers.rbegin(), servers.rend());
  for (int i = 0; i < 100; ++i) {
    const std::vector<int> one = RankServers(NumberedAnchor(i), servers);
    const std::vector<int> other = RankServers(NumberedAnchor(i), reversed);
    for (int rank = 0; rank < 5; ++rank) EXPECT_EQ(servers[one[rank]], reversed[other[rank]]);
  }
}

TEST(RankServersTest, SpreadsChainsEvenly) {
  constexpr int kNumChains = 3000;
  const std::vector<std::string> servers = Servers(3);
  std::vector<int> counts(3);
  for (int i = 0; i < kNumChains; ++i) ++counts[RankServers(NumberedAnchor(i), servers).front()];
  // Six standard deviations of a fair choice: sqrt(3000 * 1/3 * 2/3) = 25.8.
  for (const int count : counts) EXPECT_LE(std::abs(count - kNumChains / 3), 6 * 26);
}

TEST(RankServersTest, AServerThatGoesMovesItsOwnChainsAlone) {
  const std::vector<std::string> four = Servers(4);
  const std::vector<std::string> three = Servers(3);
  int num_moved = 0;
  for (int i = 0; i < 1000; ++i) {
    const std::vector<int> before = RankServers(NumberedAnchor(i), four);
    const int after = RankServers(NumberedAnchor(i), three).front();
    if (before[0] == 3) {
      ++num_moved;
      EXPECT_EQ(after, before[1]) << "the next in its ranking";
    } else {
      EXPECT_EQ(after, before[0]);
    }
  }
  // Again six: sqrt(1000 * 1/4 * 3/4) = 13.7.
  EXPECT_LE(std::abs(num_moved - 250), 6 * 14);
}

}  // namespace
}  // namespace pkv
