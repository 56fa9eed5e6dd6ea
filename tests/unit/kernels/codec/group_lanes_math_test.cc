// Lane after lane, a group gives what group_quantizer.cc gives.
#include "kernels/codec/group_lanes_math.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/codec/group_quantizer.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

constexpr uint64_t kSeed = 20261123;

struct ValuesOf {
  const std::vector<float>& values;
  float operator()(int i) const { return values[i]; }
};

// Random groups of the codec's sizes and of sizes that are not a multiple of 16; some constant,
// some of zeros of both signs.
std::vector<float> Group(TestRandom& random, int trial) {
  const int counts[] = {1, 15, 16, 28, 32, 48, 64, 112, 128};
  std::vector<float> values(counts[random.Below(9)]);
  const double width = random.Uniform() * 10;
  for (float& value : values) {
    value = static_cast<float>(width * random.Normal());
    if (trial % 5 == 1) value = 1.5f;
    if (trial % 5 == 2) value = random.Below(2) == 0 ? 0.0f : -0.0f;
    if (trial % 5 == 3 && random.Below(2) == 0) value = value < 0 ? -0.0f : 0.0f;
  }
  return values;
}

TEST(GroupLanesMathTest, SearchesAsGroupQuantizer) {
  RecordProperty("seed", static_cast<int>(kSeed));
  TestRandom random(kSeed);
  for (int trial = 0; trial < 1000; ++trial) {
    const std::vector<float> values = Group(random, trial);
    const int count = static_cast<int>(values.size()), bits = 2 << random.Below(2);
    const int num_ratios = 1 + random.Below(kNumShrinkRatios);
    const GroupParams want = SearchParams({values.data(), count, bits}, num_ratios);
    const GroupParams got = SearchLanes(ValuesOf{values}, count, bits, num_ratios);
    ASSERT_EQ(got.scale, want.scale) << "trial " << trial;
    ASSERT_EQ(got.zero, want.zero) << "trial " << trial;
  }
}

TEST(GroupLanesMathTest, CorrectsGainAsGroupQuantizer) {
  TestRandom random(kSeed);
  int num_corrected = 0;
  for (int trial = 0; trial < 1000; ++trial) {
    const std::vector<float> values = Group(random, trial);
    const int count = static_cast<int>(values.size()), bits = 2 << random.Below(2);
    const GroupValues group = {values.data(), count, bits};
    const GroupParams searched = SearchParams(group, 7);
    const GroupParams want = CorrectGain(group, searched);
    const GroupParams got = CorrectLanes(ValuesOf{values}, count, bits, searched);
    ASSERT_EQ(got.scale, want.scale) << "trial " << trial;
    ASSERT_EQ(got.zero, want.zero) << "trial " << trial;
    num_corrected += want.scale != searched.scale ? 1 : 0;
  }
  EXPECT_GT(num_corrected, 100);
}

}  // namespace
}  // namespace pkv
