// Runs the phases of key_fit_math.h for 128 threads, one after another, and holds what they choose
// to EncodeKeyGroup() of the CPU codec.
#include "kernels/codec/key_fit_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "kernels/codec/key_encoder.h"
#include "kernels/codec/key_feedback_math.h"
#include "tests/support/block_fixture.h"

namespace pkv {
namespace {

constexpr uint64_t kSeed = 20261124;
constexpr int kHeadDim = 32;

using Tile = std::vector<float>;  // [channel][slot]

// Channels like a model's, constant ones, and some of fp16's ends and zeros.
Tile HardTile(TestRandom& random) {
  constexpr float kEnds[] = {65504.0f, -65504.0f, 0.0f, -0.0f, 0x1p-24f, -0x1p-24f};
  Tile tile(size_t{kHeadDim} * kBlockTokens);
  for (int channel = 0; channel < kHeadDim; ++channel) {
    const double width = random.Uniform() * 8;
    for (int slot = 0; slot < kBlockTokens; ++slot) {
      float value = static_cast<float>(width * random.Normal());
      if (channel % 8 == 5) value = 0.75f;
      if (channel % 8 == 6) value = kEnds[random.Below(6)];
      if (channel % 8 == 7) value = random.Below(2) == 0 ? 0.0f : -0.0f;
      tile[size_t(channel) * kBlockTokens + slot] = value;
    }
  }
  return tile;
}

// What a block's K becomes, both ways. Zero where sinks stand.
struct Encoded {
  std::vector<uint8_t> codes = std::vector<uint8_t>(size_t{kHeadDim} * kBlockTokens);
  std::vector<Float16Bits> scales = std::vector<Float16Bits>(size_t{kHeadDim} * 4);
  std::vector<Float16Bits> zeros = scales;
};

// ErrorUnitFor() of each slot's group.
std::vector<ErrorUnit> Units(const Tile& tile, const KeyFitRule& rule) {
  std::vector<ErrorUnit> units(kBlockTokens);
  for (int slot = 0; slot < kBlockTokens; ++slot) {
    const int begin = slot / rule.group_tokens * rule.group_tokens;
    float largest = 0;
    for (int channel = 0; channel < kHeadDim; ++channel) {
      for (int other = std::max(begin, rule.num_sinks); other < begin + rule.group_tokens;
           ++other) {
        largest = std::max(largest, std::abs(tile[size_t(channel) * kBlockTokens + other]));
      }
    }
    units[slot] = ErrorUnitFor(ToFiniteFloat16(largest));
  }
  return units;
}

Encoded ByThreads(const Tile& tile, const KeyFitRule& rule, const KeyFeedback* feedback) {
  const auto shared = std::make_unique<KeyFitShared>();
  std::vector<KeyFitThread> threads;
  for (int slot = 0; slot < kBlockTokens; ++slot) threads.emplace_back(rule, slot, *shared);
  const auto run_all = [&](const auto& phase) {
    std::for_each(threads.begin(), threads.end(), phase);
  };
  std::vector<int> counted(tile.size());
  const std::vector<ErrorUnit> units = Units(tile, rule);
  Encoded out;
  for (int step = 0; step < kHeadDim; ++step) {
    const int channel = feedback == nullptr ? step : feedback->order[step];
    const float* x = tile.data() + size_t(channel) * kBlockTokens;
    for (int slot = 0; slot < kBlockTokens; ++slot) {
      int sum = 0;
      for (int j = 0; feedback != nullptr && j < step; ++j) {
        sum += feedback->weights[step * kHeadDim + j] * counted[j * kBlockTokens + slot];
      }
      const float factor = feedback == nullptr ? 0 : units[slot].value * feedback->scales[step];
      threads[slot].PutTarget(FeedbackTarget(x[slot], factor, sum));
    }
    FitKeys(rule, run_all);
    for (int slot = 0; slot < kBlockTokens; ++slot) {
      const KeyFitThread& thread = threads[slot];
      if (thread.is_first_worker()) {
        out.scales[thread.group_index() * kHeadDim + channel] = thread.stored().scale;
        out.zeros[thread.group_index() * kHeadDim + channel] = thread.stored().zero;
      }
      if (!thread.is_coded()) continue;
      const KeyFitThread::Coded coded = thread.Code();
      counted[step * kBlockTokens + slot] = CountedError(coded.value - x[slot], units[slot]);
      out.codes[size_t(channel) * kBlockTokens + slot] = static_cast<uint8_t>(coded.code);
    }
  }
  return out;
}

Encoded ByGroups(const Tile& tile, const KeyFitRule& rule, const CodecParams& params,
                 const KeyFeedback* feedback) {
  Encoded out;
  for (int begin = 0; begin < kBlockTokens; begin += rule.group_tokens) {
    const int end = begin + rule.group_tokens, first = std::max(begin, rule.num_sinks);
    if (first >= end) continue;
    const int count = end - first, num_fine = end == kBlockTokens ? rule.num_fine : 0;
    Tile residuals;
    for (int channel = 0; channel < kHeadDim; ++channel) {
      const auto row = tile.begin() + channel * kBlockTokens;
      residuals.insert(residuals.end(), row + first, row + end);
    }
    const KeyGroupCodes coded =
        EncodeKeyGroup(residuals, kHeadDim, {count - num_fine, num_fine}, params, feedback, 0);
    for (int channel = 0; channel < kHeadDim; ++channel) {
      const int at = begin / rule.group_tokens * kHeadDim + channel;
      out.scales[at] = coded.params[channel].scale;
      out.zeros[at] = coded.params[channel].zero;
      std::copy_n(coded.codes.begin() + channel * count, count,
                  out.codes.begin() + channel * kBlockTokens + first);
    }
  }
  return out;
}

void ExpectEqual(const KeyFitRule& rule, const CodecParams& params, TestRandom& random,
                 bool has_feedback) {
  const Tile tile = HardTile(random);
  const KeyFeedback feedback = RandomKeyFeedback(random.Bits(), 1, kHeadDim);
  const KeyFeedback* used = has_feedback ? &feedback : nullptr;
  const Encoded got = ByThreads(tile, rule, used), want = ByGroups(tile, rule, params, used);
  EXPECT_EQ(got.scales, want.scales);
  EXPECT_EQ(got.zeros, want.zeros);
  EXPECT_EQ(got.codes, want.codes);
}

struct Widths {
  int bits, num_fine;
};

class KeyFitMathTest : public testing::TestWithParam<Widths> {};

TEST_P(KeyFitMathTest, ThreadsChooseWhatGroupsOnTheCpuDo) {
  RecordProperty("seed", static_cast<int>(kSeed));
  TestRandom random(kSeed);
  CodecParams params;
  params.encoding.bits_k = GetParam().bits;
  for (const int group_tokens : {32, 64, 128}) {
    for (const int num_sinks : {0, 4, 16, 64}) {
      for (const double floor : {1.0, 0.7, 0.4}) {
        for (const int switches : {0, 1, 2, 3}) {
          params.unbiased_k = switches % 2 == 1;
          params.clip_k = floor < 1 ? Clip::kSearch : Clip::kNone;
          params.clip_k_floor = floor;
          const KeyFitRule rule = {group_tokens,         num_sinks,
                                   GetParam().num_fine,  GetParam().bits,
                                   NumKeyRatios(params), params.unbiased_k};
          SCOPED_TRACE(testing::Message()
                       << "group " << group_tokens << " sinks " << num_sinks << " floor " << floor
                       << " unbiased " << params.unbiased_k << " feedback " << switches / 2);
          ExpectEqual(rule, params, random, switches >= 2);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(CodeWidths, KeyFitMathTest,
                         testing::Values(Widths{2, 0}, Widths{2, kFineTokens}, Widths{4, 0}));

}  // namespace
}  // namespace pkv
