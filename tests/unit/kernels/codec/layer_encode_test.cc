#include "kernels/codec/layer_encode.h"

#include <gtest/gtest.h>

#include "kernels/codec/codec_math.h"
#include "tests/support/block_fixture.h"

namespace pkv {
namespace {

constexpr KvShape kShape = {1, 2, 128};

TEST(LayerEncodeTest, TakesTheRuleOfThePreset) {
  const LayerEncodeArgs args = EncodeArgsFor(kShape, PresetFor("default", kShape));
  EXPECT_EQ(args.num_ratios_k, 3);  // 1.0, 0.9, 0.8
  EXPECT_EQ(args.num_ratios_v, 7);  // 1.0, 0.9, .., 0.4
  EXPECT_TRUE(args.unbiased_k);
  EXPECT_TRUE(args.unbiased_v);
  EXPECT_EQ(args.layout.head_bytes, 9984);
  EXPECT_EQ(args.gate_v, Gate::kNone);
}

TEST(LayerEncodeTest, DirectEncoderCoversTheParityPresetsAlone) {
  for (const char* name : {"kivi2", "kivi2-g32", "kivi4", "kivi4-g64", "pkv2", "pkv4"}) {
    LayerEncodeArgs args = EncodeArgsFor(kShape, PresetFor(name, kShape));
    EXPECT_TRUE(DirectEncodeCovers(args)) << name;
    args.gate_v = Gate::kZTest;
    EXPECT_TRUE(DirectEncodeCovers(args)) << name;
    args.gate_v = Gate::kExactMse;
    EXPECT_FALSE(DirectEncodeCovers(args)) << name;
  }
  for (const char* name : {"fp16", "default", "default4"}) {
    EXPECT_FALSE(DirectEncodeCovers(EncodeArgsFor(kShape, PresetFor(name, kShape)))) << name;
  }
}

TEST(LayerEncodeTest, SearchesCoverTheDefaults) {
  for (const char* name : {"default", "default4"}) {
    LayerEncodeArgs args = EncodeArgsFor(kShape, PresetFor(name, kShape));
    EXPECT_TRUE(ValueSearchCovers(args)) << name;
    EXPECT_TRUE(KeySearchCovers(args)) << name << " without patterns";
    const uint8_t id = 0;
    args.k_ids = &id;
    EXPECT_FALSE(KeySearchCovers(args)) << name << " without memory for patterns by channel";
    float column = 0;
    args.k_pattern_columns = &column;
    EXPECT_TRUE(KeySearchCovers(args)) << name;
  }
}

}  // namespace
}  // namespace pkv
