#include "worker/batch/pool_layout.h"

#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

constexpr KvShape kLlama8b = {32, 8, 128};

TEST(PoolLayoutTest, AnFp16PageIsKAndVOf128Tokens) {
  const PoolLayout layout = PoolLayout::Of(kLlama8b, *PresetByName("fp16", kLlama8b));
  EXPECT_EQ(layout.page_stride, 8 * 128 * 128 * 4);
  EXPECT_EQ(layout.PageBytes(kLlama8b), 32 * layout.page_stride);
  EXPECT_EQ(layout.bank_capacity, 0);
  EXPECT_EQ(layout.window_capacity, 128);
}

TEST(PoolLayoutTest, ASlotHoldsWindowSinksAndBank) {
  CodecParams params = *PresetByName("default", kLlama8b);
  const PoolLayout layout = PoolLayout::Of(kLlama8b, params);
  EXPECT_EQ(layout.window_capacity, 128 + params.recent_tokens);
  const int64_t rows = layout.window_capacity + params.num_sinks + layout.bank_capacity;
  EXPECT_EQ(layout.SlotBytes(kLlama8b), 32 * rows * 8 * 128 * 2 * 2);
  params.num_patterns_k = params.num_patterns_v = kMaxPatterns;
  EXPECT_EQ(PoolLayout::Of(kLlama8b, params).bank_capacity, kMaxPatterns) << "ids are bytes";
}

TEST(PoolLayoutTest, PagesAreAlignedForTheLoadsOfAttention) {
  for (const std::string& preset : PresetNames()) {
    for (const int head_dim : {64, 128}) {
      const KvShape shape = {2, 3, head_dim};
      const auto params = PresetByName(preset, shape);
      ASSERT_THAT(params, IsOk());
      EXPECT_EQ(PoolLayout::Of(shape, *params).page_stride % 128, 0) << preset;
    }
  }
}

}  // namespace
}  // namespace pkv
