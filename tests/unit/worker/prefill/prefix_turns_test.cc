#include "worker/prefill/prefix_turns.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <utility>

#include "tests/support/sealed_object.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

TEST(PrefixTurnsTest, GivesDifferentBlocksTurnsSideBySide) {
  PrefixTurns turns;
  const auto first = turns.Take(TestDigest(1), nullptr),
             second = turns.Take(TestDigest(2), nullptr);
  ASSERT_THAT(first, IsOk());
  ASSERT_THAT(second, IsOk());
  EXPECT_TRUE(first->is_held());
  EXPECT_TRUE(second->is_held());
}

TEST(PrefixTurnsTest, ReturnsAnEmptyTurnOnceTheHolderHasLeft) {
  PrefixTurns turns;
  PrefixTurns::Turn held = *turns.Take(TestDigest(1), nullptr);
  std::atomic<bool> waiting = false, left = false;
  std::thread other([&] {
    const auto turn = turns.Take(TestDigest(1), [&] { return waiting = true, false; });
    EXPECT_TRUE(left) << "did not wait";
    ASSERT_THAT(turn, IsOk());
    EXPECT_FALSE(turn->is_held());
    EXPECT_TRUE(turns.Take(TestDigest(1), nullptr)->is_held());
  });
  while (!waiting) std::this_thread::yield();
  left = true;
  held = PrefixTurns::Turn();
  other.join();
}

TEST(PrefixTurnsTest, EndsTheWaitWhenTheCallerWentAway) {
  PrefixTurns turns;
  const auto held = turns.Take(TestDigest(1), nullptr);
  EXPECT_THAT(turns.Take(TestDigest(1), [] { return true; }),
              StatusIs(absl::StatusCode::kCancelled));
}

}  // namespace
}  // namespace pkv
