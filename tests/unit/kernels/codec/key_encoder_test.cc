// Holds the encoder of K groups to plain loops, bit by bit.
#include "kernels/codec/key_encoder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "kernels/codec/group_quantizer.h"
#include "tests/support/block_fixture.h"
#include "tests/support/feedback_reference.h"

namespace pkv {
namespace {

constexpr int kDim = 64;
constexpr uint64_t kSeed = 41;

// [channel][slot], every 16th channel louder.
std::vector<float> RandomResiduals(int num_slots, uint64_t seed = kSeed) {
  TestRandom random(seed);
  std::vector<float> residuals(size_t(kDim) * num_slots);
  for (size_t i = 0; i < residuals.size(); ++i) {
    const double width = i / num_slots % 16 == 3 ? 8 : 1;
    residuals[i] = static_cast<float>(width * random.Normal() + 0.5);
  }
  return residuals;
}

// Codes of one channel and what they decode to, from the parameters that code and decode.
struct PlainChannel {
  std::vector<uint8_t> codes;
  std::vector<float> decoded;
};
PlainChannel PlainCodes(const std::vector<float>& targets, KeyGroup group, int bits,
                        GroupParams searched, GroupParams stored) {
  PlainChannel out;
  const float scale = Float16ToFloat(stored.scale), zero = Float16ToFloat(stored.zero);
  const float step = scale / 3.0f, low = zero - scale;
  for (int i = 0; i < group.num_slots(); ++i) {
    const bool fine = i >= group.num_coarse;
    const float code = fine ? QuantizeOne(targets[i], step, low, 15)
                            : QuantizeOne(targets[i], Float16ToFloat(searched.scale),
                                          Float16ToFloat(searched.zero), MaxCode(bits));
    out.codes.push_back(static_cast<uint8_t>(code));
    const volatile float product = code * (fine ? step : scale);
    out.decoded.push_back(product + (fine ? low : zero));
  }
  return out;
}

// Of the group's largest residual, as fp16 has it, the power of two below it is 512.
double PlainUnit(const std::vector<float>& residuals) {
  float largest = 0;
  for (const float x : residuals) largest = std::max(largest, std::abs(x));
  const float rounded = Float16ToFloat(ToFiniteFloat16(largest));
  return rounded == 0 ? 1 : std::ldexp(1.0, std::ilogb(rounded) - 9);
}

// Search and correction have tests of their own (group_quantizer_test.cc); everything else plainly.
KeyGroupCodes PlainGroup(const std::vector<float>& residuals, KeyGroup group,
                         const CodecParams& params, int num_ratios, const KeyFeedback* feedback) {
  const int n = group.num_slots(), bits = params.encoding.bits_k;
  KeyGroupCodes out;
  out.params.resize(kDim);
  out.codes.resize(residuals.size());
  std::vector<std::vector<double>> counted;
  const double unit = PlainUnit(residuals);
  for (int step = 0; step < kDim; ++step) {
    const int channel = feedback == nullptr ? step : feedback->order_of(0)[step];
    const float* x = residuals.data() + size_t(channel) * n;
    std::vector<float> targets(x, x + n);
    for (int i = 0; i < n && feedback != nullptr; ++i) {
      double sum = 0;
      for (int j = 0; j < step; ++j) {
        sum += feedback->weights_of(0)[size_t(step) * kDim + j] * counted[j][i];
      }
      const volatile float product =
          static_cast<float>(unit * feedback->scales_of(0)[step]) * static_cast<float>(sum);
      targets[i] = x[i] - product;
    }
    const GroupValues coarse = {targets.data(), group.num_coarse, bits};
    const auto [min, max] =
        std::minmax_element(targets.begin(), targets.begin() + group.num_coarse);
    const GroupParams searched =
        num_ratios == 1 ? MakeGroupParams(*min, *max, bits) : SearchParams(coarse, num_ratios);
    out.params[channel] = params.unbiased_k ? CorrectGain(coarse, searched) : searched;
    const PlainChannel plain = PlainCodes(targets, group, bits, searched, out.params[channel]);
    std::copy(plain.codes.begin(), plain.codes.end(), out.codes.begin() + size_t(channel) * n);
    counted.emplace_back(n);
    for (int i = 0; i < n; ++i) {
      const float error = plain.decoded[i] - x[i];
      counted.back()[i] = std::clamp(std::nearbyint(error / unit), -2047.0, 2047.0);
    }
  }
  return out;
}

void ExpectEqual(const KeyGroupCodes& a, const KeyGroupCodes& b) {
  EXPECT_EQ(a.codes, b.codes);
  for (int j = 0; j < kDim; ++j) {
    ASSERT_EQ(a.params[j].scale, b.params[j].scale) << "channel " << j;
    ASSERT_EQ(a.params[j].zero, b.params[j].zero) << "channel " << j;
  }
}

CodecParams Plain(int bits) {
  CodecParams params = PresetFor(bits == 2 ? "kivi2" : "kivi4", {1, 1, kDim});
  params.clip_k_floor = 0.7;  // 4 ratios, once a search is on
  return params;
}

// Slots of a group of 32, 64 or 128, behind sinks and before fine tokens.
class KeyEncoderTest : public testing::TestWithParam<std::tuple<int, int>> {
 protected:
  KeyEncoderTest() { RecordProperty("seed", static_cast<int>(kSeed)); }
  const KeyGroup group_ = {std::get<0>(GetParam()), std::get<1>(GetParam())};
  const std::vector<float> residuals_ = RandomResiduals(group_.num_slots());
  const std::shared_ptr<const KeyFeedback> feedback_ =
      FeedbackFrom(RandomMoments(kSeed, 1, kDim, 200), kDim);
};

TEST_P(KeyEncoderTest, WithoutOptionsTakesMinimumAndMaximumOfTheCoarseSlots) {
  for (const int bits : {2, 4}) {
    if (bits == 4 && group_.num_fine > 0) continue;
    ExpectEqual(EncodeKeyGroup(residuals_, kDim, group_, Plain(bits), nullptr, 0),
                PlainGroup(residuals_, group_, Plain(bits), 1, nullptr));
  }
}

TEST_P(KeyEncoderTest, SearchesDownToTheFloor) {
  CodecParams params = Plain(2);
  params.clip_k = Clip::kSearch;
  const std::vector<std::pair<double, int>> ratios = {
      {1.0, 1}, {0.9, 2}, {0.8, 3}, {0.7, 4}, {0.4, 7}};
  for (const auto& [floor, num_ratios] : ratios) {
    params.clip_k_floor = floor;
    ExpectEqual(EncodeKeyGroup(residuals_, kDim, group_, params, nullptr, 0),
                PlainGroup(residuals_, group_, params, num_ratios, nullptr));
  }
}

TEST_P(KeyEncoderTest, StoresCorrectedParametersAndCodesFromSearchedOnes) {
  CodecParams params = Plain(2);
  params.clip_k = Clip::kSearch;
  params.unbiased_k = true;
  const KeyGroupCodes corrected = EncodeKeyGroup(residuals_, kDim, group_, params, nullptr, 0);
  ExpectEqual(corrected, PlainGroup(residuals_, group_, params, 4, nullptr));
  params.unbiased_k = false;
  const KeyGroupCodes searched = EncodeKeyGroup(residuals_, kDim, group_, params, nullptr, 0);
  for (int j = 0; j < kDim; ++j) {
    const auto* at = searched.codes.data() + size_t(j) * group_.num_slots();
    EXPECT_TRUE(std::equal(at, at + group_.num_coarse,
                           corrected.codes.data() + size_t(j) * group_.num_slots()))
        << "coarse codes of channel " << j;
  }
}

TEST_P(KeyEncoderTest, FeedsErrorsBackInStepOrder) {
  for (const bool all_options : {false, true}) {
    CodecParams params = Plain(2);
    params.clip_k = all_options ? Clip::kSearch : Clip::kNone;
    params.unbiased_k = all_options;
    const int num_ratios = all_options ? 4 : 1;
    const KeyGroupCodes coded =
        EncodeKeyGroup(residuals_, kDim, group_, params, feedback_.get(), 0);
    ExpectEqual(coded, PlainGroup(residuals_, group_, params, num_ratios, feedback_.get()));
    if (group_.num_slots() == 1) continue;  // one value has code 0 whatever it is
    EXPECT_NE(coded.codes, EncodeKeyGroup(residuals_, kDim, group_, params, nullptr, 0).codes);
  }
}

TEST_P(KeyEncoderTest, FeedbackWithoutWeightsChangesNothing) {
  const std::vector<float> no_moment(size_t{kDim} * kDim);
  const auto none = FeedbackFrom(no_moment, kDim);
  const CodecParams params = Plain(2);
  ExpectEqual(EncodeKeyGroup(residuals_, kDim, group_, params, none.get(), 0),
              EncodeKeyGroup(residuals_, kDim, group_, params, nullptr, 0));
}

INSTANTIATE_TEST_SUITE_P(Groups, KeyEncoderTest,
                         testing::Values(std::tuple(32, 0), std::tuple(64, 0), std::tuple(128, 0),
                                         std::tuple(16, 16), std::tuple(48, 16),
                                         std::tuple(112, 16), std::tuple(96, 16),
                                         std::tuple(64, 64), std::tuple(28, 0), std::tuple(1, 0)));

TEST(KeyEncoderHeadsTest, TakesTheFeedbackOfItsHead) {
  const KeyGroup group = {128, 0};
  const std::vector<float> residuals = RandomResiduals(128);
  const std::vector<float> two = RandomMoments(kSeed, 2, kDim, 200);
  const std::vector<float> second(two.begin() + kDim * kDim, two.end());
  ExpectEqual(
      EncodeKeyGroup(residuals, kDim, group, Plain(2), FeedbackFrom(two, kDim).get(), 1),
      EncodeKeyGroup(residuals, kDim, group, Plain(2), FeedbackFrom(second, kDim).get(), 0));
}

}  // namespace
}  // namespace pkv
