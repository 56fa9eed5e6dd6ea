#include "kernels/attention/decode_plan_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

constexpr uint64_t kSeed = 34;
constexpr int kPlans = 10000;

struct Plan {
  int total_cost, num_ctas, min_cost;
};
std::ostream& operator<<(std::ostream& os, const Plan& p) {
  return os << "cost " << p.total_cost << ", " << p.num_ctas << " CTAs, at least " << p.min_cost;
}
DecodeSlices Cut(const Plan& p) { return CutDecodeUnits(p.total_cost, p.num_ctas, p.min_cost); }

// Little work, much, and as much as there can be; one CTA, or those of a large device.
Plan RandomPlan(TestRandom& random) {
  constexpr int kMost = 1 << 30;  // more blocks than a device holds
  const int limits[] = {4, 100, 5000, 1 << 20, kMost};
  return {.total_cost = random.Below(limits[random.Below(5)]),
          .num_ctas = 1 + (random.Below(4) == 0 ? random.Below(4) : random.Below(1056)),
          .min_cost = 1 + random.Below(32)};
}

class DecodeSlicesTest : public testing::Test {
 protected:
  DecodeSlicesTest() { RecordProperty("seed", static_cast<int>(kSeed)); }

  template <typename Check>
  void ForEachPlan(const Check& check) {
    TestRandom random(kSeed);
    for (int i = 0; i < kPlans && !HasFailure(); ++i) {
      const Plan plan = RandomPlan(random);
      SCOPED_TRACE(testing::PrintToString(plan));
      check(plan, Cut(plan));
    }
  }
};

TEST_F(DecodeSlicesTest, FollowEachOtherAndHoldAllWork) {
  ForEachPlan([](const Plan& plan, const DecodeSlices& slices) {
    ASSERT_EQ(slices.CostBegin(0), 0);
    ASSERT_EQ(slices.CostBegin(slices.count), plan.total_cost);
    for (int i = 0; i < slices.count; ++i) {
      ASSERT_LE(slices.CostBegin(i), slices.CostBegin(i + 1)) << "slice " << i;
    }
  });
}

TEST_F(DecodeSlicesTest, FindTheSliceOfEveryCost) {
  constexpr int kFew = 5000;
  ForEachPlan([](const Plan& plan, const DecodeSlices& slices) {
    const auto check = [&](int cost) {
      const int slice = slices.SliceOf(cost);
      ASSERT_LE(slices.CostBegin(slice), cost);
      ASSERT_GT(slices.CostBegin(slice + 1), cost);
    };
    for (int cost = 0; cost < plan.total_cost && plan.total_cost < kFew; ++cost) check(cost);
    for (int i = 0; i < slices.count; ++i) {
      if (slices.CostBegin(i) == slices.CostBegin(i + 1)) continue;
      check(slices.CostBegin(i));
      check(slices.CostBegin(i + 1) - 1);
    }
  });
}

TEST_F(DecodeSlicesTest, AreEqualWithinOne) {
  ForEachPlan([](const Plan&, const DecodeSlices& slices) {
    for (int i = 0; i < slices.count; ++i) {
      const int size = slices.CostBegin(i + 1) - slices.CostBegin(i);
      ASSERT_GE(size, slices.share);
      ASSERT_LE(size, slices.share + 1);
    }
  });
}

TEST_F(DecodeSlicesTest, AreAsManyAsCtasUnlessTheyWouldBeTooShort) {
  ForEachPlan([](const Plan& plan, const DecodeSlices& slices) {
    const int most = std::max(1, plan.total_cost / plan.min_cost);
    ASSERT_EQ(slices.count, plan.total_cost == 0 ? 0 : std::min(plan.num_ctas, most));
  });
}

// Whoever asks for the slice of an item's unit finds the one that takes it: the last to arrive
// merges what those slices left.
TEST_F(DecodeSlicesTest, TakeEveryUnitOfEveryItemOnce) {
  constexpr int kBatches = 1000;
  TestRandom random(kSeed);
  for (int i = 0; i < kBatches; ++i) {
    const int item_cost = random.Below(6);
    std::vector<int> items(1 + random.Below(40));
    Plan plan = RandomPlan(random);
    plan.total_cost = 0;
    for (int& units : items) {
      units = random.Below(4) == 0 ? 0 : random.Below(60);
      plan.total_cost += item_cost + units;
    }
    SCOPED_TRACE(testing::PrintToString(plan));
    const DecodeSlices slices = Cut(plan);
    int item_at = 0;
    for (const int units : items) {
      std::vector<int> taken(units, 0);
      for (int slice = 0; slice < slices.count; ++slice) {
        const int begin = DecodeUnitAt(slices.CostBegin(slice), item_at, item_cost, units);
        const int end = DecodeUnitAt(slices.CostBegin(slice + 1), item_at, item_cost, units);
        for (int unit = begin; unit < end; ++unit) {
          ++taken[unit];
          ASSERT_EQ(slices.SliceOf(item_at + item_cost + unit), slice) << "unit " << unit;
        }
      }
      ASSERT_EQ(std::count(taken.begin(), taken.end(), 1), units);
      item_at += item_cost + units;
    }
  }
}

// A team has one line, and lines have equally many teams.
TEST(DecodeTeamsTest, GiveEveryKvHeadAsMany) {
  for (int num_ctas = 1; num_ctas <= 200; ++num_ctas) {
    for (int num_kv_heads = 1; num_kv_heads <= 32; ++num_kv_heads) {
      SCOPED_TRACE(testing::Message() << num_ctas << " CTAs, " << num_kv_heads << " kv heads");
      const DecodeTeams teams = TeamsOfKvHeads(num_ctas, num_kv_heads);
      ASSERT_EQ(teams.lines * teams.of_line, num_ctas * teams.of_cta);
      ASSERT_TRUE(teams.lines == num_kv_heads || (teams.lines == 1 && teams.of_cta == 1));
    }
  }
}

TEST(DecodeTeamsTest, AreAsFewOfACtaAsThatTakes) {
  EXPECT_EQ(TeamsOfKvHeads(132, 4).of_cta, 1);
  EXPECT_EQ(TeamsOfKvHeads(132, 8).of_cta, 2);
  EXPECT_EQ(TeamsOfKvHeads(132, 16).of_cta, 4);
  EXPECT_EQ(TeamsOfKvHeads(132, 32).lines, 1) << "eight would be too many";
  EXPECT_EQ(TeamsOfKvHeads(132, 7).lines, 1);
}

// Tiles of a run of tokens: all of them, and none that is empty.
void ExpectTiles(int tiles, int tokens, int tile_tokens) {
  EXPECT_GE(tiles * tile_tokens, tokens);
  EXPECT_LT((tiles - 1) * tile_tokens, std::max(1, tokens));
}

TEST(DecodeItemUnitsTest, HoldEveryToken) {
  TestRandom random(kSeed);
  for (int i = 0; i < kPlans; ++i) {
    const DecodeUnitRule rule = {.units_per_block = 1 << random.Below(4),
                                 .tile_shift = 4 + random.Below(2),
                                 .num_sinks = random.Below(65)};
    const int num_blocks = random.Below(3) == 0 ? 0 : random.Below(2000);
    const int window = random.Below(400);
    const DecodeItemUnits units = CountDecodeUnits(rule, num_blocks, window);
    ASSERT_EQ(units.blocks, num_blocks * rule.units_per_block);
    const int tile_tokens = 1 << rule.tile_shift;
    ExpectTiles(units.window, window, tile_tokens);
    ExpectTiles(units.sinks, num_blocks > 0 ? rule.num_sinks : 0, tile_tokens);
    ASSERT_EQ(units.total(), units.blocks + units.sinks + units.window);
    ASSERT_FALSE(testing::Test::HasFailure())
        << num_blocks << " blocks, window " << window << ", sinks " << rule.num_sinks
        << ", tiles of " << tile_tokens;
  }
}

TEST(DecodeItemUnitsTest, OfARequestWithoutTokensAreNone) {
  EXPECT_EQ(CountDecodeUnits({.num_sinks = 16}, 0, 0).total(), 0);
}

}  // namespace
}  // namespace pkv
