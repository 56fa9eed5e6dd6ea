// Holds the vectorized fits to the plain loops of group_quantizer.h, bit by bit, on every
// instruction set.
#include "kernels/codec/group_fit_simd.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "kernels/codec/group_quantizer.h"
#include "kernels/codec/key_feedback_math.h"
#include "tests/support/simd_targets.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

enum class Input {
  kNormal,
  kLattice,      // few different values: ties everywhere
  kSignedZeros,  // zeros of both signs, and little else
  kTiny,         // scales that are stored as 0
  kHuge,         // parameters that saturate
  kFarAway,      // a small range about a large mean
  kConstant,
};
constexpr Input kInputs[] = {Input::kNormal, Input::kLattice, Input::kSignedZeros, Input::kTiny,
                             Input::kHuge,   Input::kFarAway, Input::kConstant};

float ValueOf(Input input, TestRandom& random) {
  switch (input) {
    case Input::kNormal:
      return static_cast<float>(random.Normal());
    case Input::kLattice:
      return static_cast<float>(random.Below(13) - 4) * 0.25f;
    case Input::kSignedZeros:
      return random.Below(20) == 0 ? static_cast<float>(random.Below(3) - 1)
                                   : (random.Below(2) == 0 ? 0.0f : -0.0f);
    case Input::kTiny:
      return static_cast<float>(random.Normal() * 0x1p-15);
    case Input::kHuge:
      return static_cast<float>(random.Normal() * 9e4);
    case Input::kFarAway:
      return static_cast<float>(1000 + random.Normal() * 0.01);
    case Input::kConstant:
      return -0.37f;
  }
  return 0;
}

// Codes and parameters as the plain loops find them.
struct Plain {
  GroupFit fit;
  std::vector<uint8_t> codes;
};
Plain FitPlainly(const std::vector<float>& values, int count, const GroupRule& rule) {
  const GroupValues group = {values.data(), count, rule.bits};
  Plain plain;
  plain.fit.searched = plain.fit.stored = SearchParams(group, rule.num_ratios);
  if (rule.unbiased) plain.fit.stored = CorrectGain(group, plain.fit.searched);
  const float scale = Float16ToFloat(plain.fit.searched.scale);
  const float zero = Float16ToFloat(plain.fit.searched.zero);
  for (int i = 0; i < count; ++i) {
    plain.codes.push_back(
        static_cast<uint8_t>(QuantizeOne(values[i], scale, zero, MaxCode(rule.bits))));
  }
  return plain;
}

bool Same(GroupParams a, GroupParams b) { return a.scale == b.scale && a.zero == b.zero; }

class GroupFitSimdTest : public testing::TestWithParam<int> {};  // bits

TEST_P(GroupFitSimdTest, FitsAsThePlainLoopsDo) {
  constexpr uint64_t kSeed = 71;
  TestRandom random(kSeed);
  for (const Input input : kInputs) {
    for (const int count : {1, 5, 16, 32, 64, 96, 108, 112, 124, 127, 128}) {
      std::vector<float> values(kBlockTokens);
      for (float& v : values) v = ValueOf(input, random);
      for (const int num_ratios : {1, 2, 3, kNumShrinkRatios}) {
        const GroupRule rule = {GetParam(), num_ratios, count % 2 == 0, false};
        const Plain want = FitPlainly(values, count, rule);
        ForEachSimdTarget([&] {
          std::vector<uint8_t> codes(kBlockTokens, 77);
          const GroupFit fit = FitGroup(values.data(), count, rule, codes.data());
          codes.resize(count);
          ASSERT_TRUE(Same(fit.searched, want.fit.searched) && Same(fit.stored, want.fit.stored) &&
                      codes == want.codes)
              << "seed " << kSeed << " input " << static_cast<int>(input) << " count " << count
              << " ratios " << num_ratios;
        });
      }
    }
  }
}

TEST_P(GroupFitSimdTest, ErrorIsThatOfThePlainLoops) {
  TestRandom random(72);
  for (const Input input : kInputs) {
    for (const int group : {32, 64, 128}) {
      std::vector<float> row(128);
      for (float& v : row) v = ValueOf(input, random);
      for (const Clip clip : {Clip::kNone, Clip::kSearch}) {
        const GroupRule rule = {.bits = GetParam(),
                                .num_ratios = clip == Clip::kNone ? 1 : kNumShrinkRatios,
                                .with_error = true};
        const float want =
            ChooseGroups(row.data(), 128, group, GetParam(), clip, /*with_error=*/true, nullptr);
        ForEachSimdTarget([&] {
          const float error = RowError(row.data(), 128, group, rule);
          ASSERT_EQ(std::bit_cast<uint32_t>(error), std::bit_cast<uint32_t>(want));
        });
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Bits, GroupFitSimdTest, testing::Values(2, 4));

// Of every scale there is: the values where a code ends, and their neighbours. With a least value
// of 0 and a greatest of three scales, the scale found is just that one.
TEST(GroupFitSimdEdgeTest, CodesChangeWhereTheQuotientRounds) {
  ForEachSimdTarget([&] {
    for (int bits = 0x0400; bits < 0x7a00; ++bits) {
      const float scale = Float16ToFloat(static_cast<Float16Bits>(bits));
      std::vector<float> values(16, 0.0f);
      values[15] = 3 * scale;
      for (int k = 1; k <= 3; ++k) {
        const float edge = (static_cast<float>(k) - 0.5f) * scale;
        values[4 * k - 3] = std::nextafter(edge, 0.0f);
        values[4 * k - 2] = edge;
        values[4 * k - 1] = std::nextafter(edge, 1e9f);
        values[4 * k] = std::nextafter(values[4 * k - 1], 1e9f);
      }
      uint8_t codes[16];
      const GroupFit fit = FitGroup(values.data(), 16, {.bits = 2}, codes);
      ASSERT_EQ(fit.searched.scale, bits);
      for (int i = 0; i < 16; ++i) {
        ASSERT_EQ(codes[i], QuantizeOne(values[i], scale, 0.0f, 3.0f)) << bits << " place " << i;
      }
    }
  });
}

TEST(GroupFitSimdEdgeTest, FineCodesAreThoseOfQuantizeOne) {
  TestRandom random(73);
  for (const float scale : {0.0f, 0.7f, 0x1p-14f, 60000.0f}) {
    const FineGrid grid = MakeFineGrid(scale, -0.5f * scale + 0.25f);
    std::vector<float> values(16);
    for (float& v : values) v = grid.low + static_cast<float>(random.Normal() * 3) * scale;
    ForEachSimdTarget([&] {
      uint8_t codes[16];
      QuantizeFine(values.data(), grid, codes);
      for (int i = 0; i < 16; ++i) {
        ASSERT_EQ(codes[i], QuantizeOne(values[i], grid.step, grid.low, 15.0f));
      }
    });
  }
}

TEST(GroupFitSimdEdgeTest, DecodedErrorsAreDecodedLessOriginal) {
  TestRandom random(74);
  std::vector<float> originals(32);
  std::vector<uint8_t> codes(32);
  for (int i = 0; i < 32; ++i) {
    originals[i] = static_cast<float>(random.Normal());
    codes[i] = static_cast<uint8_t>(random.Below(16));
  }
  ForEachSimdTarget([&] {
    std::vector<float> errors(32);
    DecodedErrors(codes.data(), originals.data(), 21, 0.3f, -1.7f, errors.data());
    for (int i = 0; i < 21; ++i) {
      ASSERT_EQ(errors[i], DequantizeOne(codes[i], 0.3f, -1.7f) - originals[i]);
    }
  });
}

TEST(GroupFitSimdEdgeTest, FeedbackIsTheSumOfCountedErrors) {
  constexpr int kSteps = 38;
  constexpr float kUnit = 0x1p-7f, kFactor = 0.013f;
  TestRandom random(75);
  std::vector<float> x(kBlockTokens), errors(kSteps * kBlockTokens);
  for (float& v : x) v = static_cast<float>(random.Normal());
  for (float& v : errors) v = static_cast<float>(8 * random.Normal());  // some beyond the clamp
  std::vector<int8_t> weights(kSteps);
  for (int8_t& w : weights) w = static_cast<int8_t>(random.Below(255) - 127);
  weights[0] = weights[1] = -127;
  for (const int num_earlier : {0, 2, kSteps}) {
    ForEachSimdTarget([&] {
      std::vector<ErrorPair> counted(kSteps / 2 * kBlockTokens, -1);
      for (int step = 0; step < kSteps; ++step) {
        CountErrors(errors.data() + step * kBlockTokens, 1 / kUnit, step, counted.data());
      }
      std::vector<float> target(kBlockTokens);
      SubtractFeedback(x.data(), weights.data(), counted.data(), num_earlier, kFactor,
                       target.data());
      for (int i = 0; i < kBlockTokens; ++i) {
        int sum = 0;
        for (int j = 0; j < num_earlier; ++j) {
          sum += weights[j] * CountedError(errors[j * kBlockTokens + i], {kUnit, 1 / kUnit});
        }
        ASSERT_EQ(target[i], FeedbackTarget(x[i], kFactor, sum)) << num_earlier << " " << i;
      }
    });
  }
}

}  // namespace
}  // namespace pkv
