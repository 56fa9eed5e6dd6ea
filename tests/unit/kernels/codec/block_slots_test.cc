#include "pkv/kernels/block_slots.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "pkv/block/kv_shape.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

std::vector<float> RandomImportance(uint64_t seed) {
  TestRandom random(seed);
  std::vector<float> importance(kBlockTokens);
  for (float& x : importance) x = static_cast<float>(random.Uniform());
  return importance;
}

std::vector<uint8_t> NaturalOrder() {
  std::vector<uint8_t> slots(kBlockTokens);
  std::iota(slots.begin(), slots.end(), uint8_t{0});
  return slots;
}

TEST(ArrangeSlotsTest, KeepsTheOrderWithoutFineTokens) {
  EXPECT_EQ(ArrangeSlots(0, 0, RandomImportance(1)), NaturalOrder());
  EXPECT_EQ(ArrangeSlots(16, 0, RandomImportance(1)), NaturalOrder());
}

TEST(ArrangeSlotsTest, PutsTheMostImportantTokensLastInTheirOrder) {
  for (const int sinks : {0, 4, 16, 64, 112}) {
    const std::vector<float> importance = RandomImportance(2);
    const std::vector<uint8_t> slots = ArrangeSlots(sinks, 16, importance);
    ASSERT_EQ(slots.size(), size_t{kBlockTokens});
    std::vector<uint8_t> sorted = slots;
    std::sort(sorted.begin(), sorted.end());
    EXPECT_EQ(sorted, NaturalOrder()) << "each token once";
    for (int i = 0; i < sinks; ++i) EXPECT_EQ(slots[i], i);
    const auto fine = slots.end() - 16;
    EXPECT_TRUE(std::is_sorted(slots.begin(), fine));
    EXPECT_TRUE(std::is_sorted(fine, slots.end()));
    float least_fine = 1, most_coarse = 0;
    for (auto slot = fine; slot != slots.end(); ++slot) {
      EXPECT_GE(*slot, sinks);
      least_fine = std::min(least_fine, importance[*slot]);
    }
    for (auto slot = slots.begin() + sinks; slot != fine; ++slot) {
      most_coarse = std::max(most_coarse, importance[*slot]);
    }
    EXPECT_GE(least_fine, most_coarse) << sinks << " sinks";
  }
}

TEST(ArrangeSlotsTest, BreaksTiesTowardsTheLowerToken) {
  std::vector<float> importance(kBlockTokens);
  importance[100] = importance[50] = 2;
  importance[3] = 9;  // a sink
  const std::vector<uint8_t> slots = ArrangeSlots(4, 4, importance);
  EXPECT_EQ(std::vector<uint8_t>(slots.end() - 4, slots.end()),
            (std::vector<uint8_t>{4, 5, 50, 100}));
  EXPECT_EQ(slots[4], 6) << "the first coarse token behind the sinks";
}

TEST(ArrangeSlotsTest, TakesNegativeImportance) {
  std::vector<float> importance(kBlockTokens, -5);
  importance[70] = -1;
  const std::vector<uint8_t> slots = ArrangeSlots(0, 1, importance);
  EXPECT_EQ(slots.back(), 70);
}

TEST(GatherSlotsTest, CopiesEachHeadInItsOwnOrder) {
  const TestTensor tensor = RandomTensor(3, 2, kBlockTokens, 64);
  std::vector<uint8_t> slots = ArrangeSlots(4, 16, RandomImportance(4));
  const std::vector<uint8_t> second = ArrangeSlots(4, 16, RandomImportance(5));
  slots.insert(slots.end(), second.begin(), second.end());
  TestTensor gathered(2, kBlockTokens, 64), back(2, kBlockTokens, 64);
  GatherSlots(tensor.view(), slots, gathered.view());
  for (int head = 0; head < 2; ++head) {
    for (int slot = 0; slot < kBlockTokens; ++slot) {
      const int token = slots[head * kBlockTokens + slot];
      const KvTensorView from = tensor.view(), to = std::as_const(gathered).view();
      ASSERT_TRUE(
          std::equal(to.k_row(head, slot), to.k_row(head, slot) + 64, from.k_row(head, token)));
      ASSERT_TRUE(
          std::equal(to.v_row(head, slot), to.v_row(head, slot) + 64, from.v_row(head, token)));
    }
  }
  ScatterSlots(std::as_const(gathered).view(), slots, back.view());
  EXPECT_EQ(back.k, tensor.k);
  EXPECT_EQ(back.v, tensor.v);
}

TEST(GatherSlotsTest, ReadsAndWritesPartsOfLongerTensors) {
  const TestTensor tensor = RandomTensor(6, 2, 3 * kBlockTokens, 64);
  const KvTensorView part = tensor.view().Tokens(kBlockTokens, kBlockTokens);
  std::vector<uint8_t> slots = NaturalOrder();
  slots.insert(slots.end(), slots.begin(), slots.begin() + kBlockTokens);
  TestTensor out(2, kBlockTokens, 64);
  GatherSlots(part, slots, out.view());
  for (int head = 0; head < 2; ++head) {
    EXPECT_TRUE(std::equal(part.k_row(head, 0), part.k_row(head, 0) + kBlockTokens * 64,
                           std::as_const(out).view().k_row(head, 0)));
  }
}

}  // namespace
}  // namespace pkv
