#include "worker/sequence/cache_sizes.h"

#include <gtest/gtest.h>

#include "kvstore/store/slab_arena.h"
#include "tests/unit/worker/sequence/sequence_driver.h"

namespace pkv {
namespace {

// What is computed is what a prefill really makes, for every preset and where the window is empty,
// short, and all there is.
TEST(CacheSizesTest, AreThoseOfTheObjectsThatAPrefillMakes) {
  for (const std::string& preset : PresetNames()) {
    const CodecParams params = *PresetByName(preset, kSequenceShape);
    for (const int num_tokens : {1, 128, 3 * 128 + 127}) {
      const Conversation talk(1, num_tokens);
      const std::unique_ptr<KvSequence> sequence = MakeSequence(params);
      Prefill(*sequence, talk, params, num_tokens);
      uint64_t total = 0, stored = 0;
      for (const auto& object : MadeObjectBytes(*sequence)) {
        total += object.size();
        stored += StoredBytes(object.size());
      }
      const auto sizes = SizesAfterPrefill(kSequenceShape, params, num_tokens);
      ASSERT_THAT(sizes, IsOk()) << preset << " " << num_tokens;
      EXPECT_EQ(sizes->total_bytes(), total) << preset << " " << num_tokens;
      EXPECT_EQ(sizes->stored_bytes, stored) << preset << " " << num_tokens;
      EXPECT_EQ(sizes->num_blocks, sequence->num_blocks()) << preset << " " << num_tokens;
      EXPECT_EQ(sizes->window_tokens, sequence->window_tokens()) << preset << " " << num_tokens;
      if (sequence->num_blocks() > 1) {
        EXPECT_EQ(sizes->block_bytes, sequence->block_headers().back().object_bytes) << preset;
      }
    }
  }
}

TEST(CacheSizesTest, StoreInTheUnitsOfTheStore) {
  static_assert(kStoreUnitBytes == kArenaUnitBytes);
  EXPECT_EQ(StoredBytes(0), 0u);
  EXPECT_EQ(StoredBytes(1), kArenaUnitBytes);
  EXPECT_EQ(StoredBytes(kArenaUnitBytes), kArenaUnitBytes);
  EXPECT_EQ(StoredBytes(kArenaUnitBytes + 1), 2 * kArenaUnitBytes);
}

TEST(CacheSizesTest, RefuseWhatCannotBeCached) {
  const CodecParams params = *PresetByName("default", kSequenceShape);
  for (const int num_tokens : {0, -1, (1 << 24) + 1}) {
    EXPECT_THAT(SizesAfterPrefill(kSequenceShape, params, num_tokens),
                StatusIs(absl::StatusCode::kInvalidArgument))
        << num_tokens;
  }
  EXPECT_THAT(SizesAfterPrefill({2, 2, 96}, params, 100),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace pkv
