#include "worker/engine/compute_turn.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace pkv {
namespace {

TEST(ComputeTurnTest, IsHeldByOneAtATime) {
  ComputeTurn turn;
  std::atomic<int> holders = 0, taken = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 100; ++round) {
        ASSERT_TRUE(turn.TakeUnless(nullptr));
        const HeldTurn held(&turn);
        EXPECT_EQ(++holders, 1);
        ++taken;
        --holders;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(taken, 400);
}

TEST(ComputeTurnTest, IsNotWaitedForByACallerThatWentAway) {
  ComputeTurn turn;
  ASSERT_TRUE(turn.TakeUnless([] { return true; })) << "it is free: nothing to wait for";
  const HeldTurn held(&turn);
  std::thread([&] { EXPECT_FALSE(turn.TakeUnless([] { return true; })); }).join();
}

}  // namespace
}  // namespace pkv
