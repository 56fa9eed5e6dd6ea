// A flipped bit in pkvd's memory: never served, counted, and the answer is right all the same.

#include <random>

#include "tests/integration/e2e/fleet.h"
#include "tests/support/arena_memory.h"

namespace pkv {
namespace {

class DamageTest : public Fleet {};

TEST_F(DamageTest, AFlippedBitInAStoredFrameIsDataLossCountedAndComputedAgain) {
  StartPkvd();
  StartWorkers();
  const std::string prompt = Document(2000);
  const Result whole = Generate("fp16", prompt, 16, {"--refuse-recompute"});
  ASSERT_EQ(whole.exit_code, 0) << whole.err;
  const Result found = Ctl({"lookup", "--model", model_, "--prompt", prompt, "--preset", "fp16"});
  ASSERT_EQ(found.exit_code, 0) << found.err;

  // A bit of the first block's frames, at a seeded place. Header and frame table are 256 + 128
  // bytes.
  const std::string id = found.json["block_ids"][0];
  std::string raw_id;
  for (size_t i = 0; i < id.size(); i += 2)
    raw_id.push_back(static_cast<char>(std::stoi(id.substr(i, 2), nullptr, 16)));
  constexpr uint64_t kIdOffset = 128, kFramesOffset = 384;
  const unsigned seed = 20261122;
  std::mt19937 random(seed);
  const uint64_t offset = kFramesOffset - kIdOffset + random() % 700000;
  ArenaMemory arena(pkvd_->pid());
  ASSERT_TRUE(arena.found()) << "pkvd has no memfd arena";
  ASSERT_TRUE(arena.FlipBit(raw_id, offset, static_cast<int>(random() % 8))) << "seed " << seed;

  EXPECT_EQ(Metric("pkv_integrity_failures_total"), 0);
  const Result again = Generate("fp16", prompt, 16);
  ASSERT_EQ(again.exit_code, 0) << again.err;
  EXPECT_GT(again.json["decode"]["recomputed_tokens"], 0);
  EXPECT_NE(std::string(again.json["decode"]["recompute_reason"]).find("DATA_LOSS"),
            std::string::npos)
      << again.json["decode"]["recompute_reason"];
  EXPECT_EQ(again.json["token_ids"], whole.json["token_ids"]);
  EXPECT_EQ(Metric("pkv_integrity_failures_total"), 1);
}

}  // namespace
}  // namespace pkv
