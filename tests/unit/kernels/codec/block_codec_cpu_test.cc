// Properties of the encoded bytes over every combination of bits, groups, head_dim and patterns.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "kernels/codec/head_frame.h"
#include "kernels/codec/key_feedback_math.h"
#include "pkv/block/object_view.h"
#include "pkv/kernels/block_codec.h"
#include "proto/base/thread_pool.h"
#include "tests/support/block_fixture.h"
#include "tests/support/coded_targets.h"
#include "tests/support/error_bound.h"
#include "tests/support/feedback_reference.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

struct Case {
  const char* preset;
  int bits_k, bits_v;
  int k_group, v_group;
  int head_dim;
  int num_sinks;
};

std::ostream& operator<<(std::ostream& os, const Case& c) {
  return os << c.preset << " K" << c.bits_k << "V" << c.bits_v << " groups " << c.k_group << "/"
            << c.v_group << " head_dim " << c.head_dim << " sinks " << c.num_sinks;
}

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const char* preset : {"kivi2", "pkv2", "default", "default4"}) {
    for (const int head_dim : {64, 128}) {
      for (const int sinks : {0, 16, 64}) {
        cases.push_back({preset, 2, 2, 128, head_dim, head_dim, sinks});
      }
      for (const int group : {32, 64}) {
        cases.push_back({preset, 4, 2, group, group, head_dim, 16});
        cases.push_back({preset, 2, 4, group, group, head_dim, 64});
      }
      cases.push_back({preset, 4, 4, 128, head_dim, head_dim, 4});
    }
  }
  return cases;
}

class BlockCodecCpuTest : public testing::TestWithParam<Case> {
 protected:
  static constexpr uint64_t kSeed = 7;
  static constexpr int kHeads = 2;

  BlockCodecCpuTest() {
    RecordProperty("seed", static_cast<int>(kSeed));
    const Case& c = GetParam();
    SetBits(c.bits_k, c.bits_v, params_);
    params_.encoding.k_group_tokens = c.k_group;
    params_.encoding.v_group_channels = c.v_group;
    params_.num_sinks = c.num_sinks;
    prompt_ = RandomTensor(kSeed, kHeads, 3 * kBlockTokens, c.head_dim);
    codebook_ = *MinePatterns(prompt_.view(), params_, {});
  }

  KvTensorView Block() const { return prompt_.view().Tokens(0, kBlockTokens); }
  EncodedBlock Encode(const ComputeContext& ctx = {}) const {
    return EncodeBlock(shape_, params_, Block(), codebook_, Phase::kPrefill, 0, ctx);
  }

  EncodedBlock EncodeWithFeedback() const {
    CodecParams params = params_;
    params.feedback_k = true;
    const std::vector<float> moments = RandomMoments(kSeed, kHeads, shape_.head_dim, 150);
    return EncodeBlock(shape_, params, Block(), codebook_, Phase::kPrefill, 0, {},
                       FeedbackFrom(moments, shape_.head_dim));
  }
  // Codes from minimum and maximum, each value for itself.
  void UsePlainCodes() {
    params_.clip_k = params_.clip_v = Clip::kNone;
    params_.unbiased_k = params_.unbiased_v = false;
  }

  // |decoded - target| of every value against the bound of its own scale and zero point.
  void CheckErrors(const EncodedBlock& block, bool is_k) const {
    std::vector<float> tile(static_cast<size_t>(kBlockTokens) * shape_.head_dim);
    for (int head = 0; head < kHeads; ++head) {
      const auto dequantize = is_k ? DequantizeKTile : DequantizeVTile;
      dequantize(block.header, block.frame.span(), block.codebook, head, tile.data());
      const CodedTargets targets = TargetsOf(block, Block(), head, is_k);
      const CodedHead coded(block.header, block.frame.span(), &block.codebook, head);
      for (int t = 0; t < kBlockTokens; ++t) {
        for (int j = 0; j < shape_.head_dim; ++j) {
          const size_t at = targets.At(t, j);
          const CodedValue value = coded.Value(is_k, t, j);
          if (value.is_exact) {
            ASSERT_EQ(tile[at],
                      Float16ToFloat((is_k ? Block().k_row(head, t) : Block().v_row(head, t))[j]));
            continue;
          }
          const double bound =
              value.is_fine ? FineBound(targets.target[at], value.scale, value.zero, value.pattern)
                            : DecodeBound(value.scale, value.zero, value.pattern, value.bits);
          ASSERT_LE(std::abs(tile[at] - value.pattern - targets.target[at]),
                    bound + targets.slack[at])
              << (is_k ? "K" : "V") << " head " << head << " token " << t << " channel " << j;
        }
      }
    }
  }

  const KvShape shape_ = {1, kHeads, GetParam().head_dim};
  CodecParams params_ = PresetFor(GetParam().preset, shape_);
  TestTensor prompt_{0, 0, 0};
  Codebook codebook_;
};

TEST_P(BlockCodecCpuTest, ErrorOfEveryPlainValueIsWithinHalfAStep) {
  UsePlainCodes();
  CheckErrors(Encode(), true);
  CheckErrors(Encode(), false);
}

TEST_P(BlockCodecCpuTest, WithFeedbackEveryPlainKIsWithinHalfAStepOfItsTarget) {
  UsePlainCodes();
  CheckErrors(EncodeWithFeedback(), true);
}

TEST_P(BlockCodecCpuTest, SearchedAndCorrectedValuesStayWithinTheirGroup) {
  for (const EncodedBlock& block : {Encode(), EncodeWithFeedback()}) {
    for (int head = 0; head < kHeads; ++head) {
      EXPECT_LE(WorstShareOfBound(block, Block(), head, true), 1) << "head " << head;
      EXPECT_LE(WorstShareOfBound(block, Block(), head, false), 1) << "head " << head;
    }
  }
}

TEST_P(BlockCodecCpuTest, BytesDoNotDependOnTheThreadPool) {
  ThreadPool pool(3);
  const EncodedBlock alone = Encode(), shared = Encode({.pool = &pool});
  EXPECT_EQ(std::memcmp(alone.frame.data(), shared.frame.data(), alone.frame.size()), 0);
}

TEST_P(BlockCodecCpuTest, BytesDoNotDependOnWhatTheFrameHeldBefore) {
  const EncodedBlock clean = Encode();
  AlignedBuffer dirty(clean.frame.size());
  std::memset(dirty.data(), 0x7f, dirty.size());
  const auto codec = *MakeBlockCodec(shape_, params_, Device::kCpu);
  ASSERT_THAT(
      codec->Encode(clean.header, Block(), clean.assignment, clean.codebook, {}, dirty.span()),
      IsOk());
  EXPECT_EQ(std::memcmp(clean.frame.data(), dirty.data(), dirty.size()), 0);
}

TEST_P(BlockCodecCpuTest, StoredNumbersPassTheFormatsCheck) {
  const EncodedBlock block = Encode();
  EXPECT_THAT(CheckFrameNumbers(block.header, 0, block.frame.span()), IsOk());
}

TEST_P(BlockCodecCpuTest, SinkSlotsHoldNoCodesAndNoPattern) {
  const EncodedBlock block = Encode();
  const PayloadLayout layout = PayloadLayout::Of(block.header);
  const Encoding& e = params_.encoding;
  const CodeMap k_map(kBlockTokens, shape_.head_dim, e.bits_k);
  const CodeMap v_map(shape_.head_dim, kBlockTokens, e.bits_v);
  for (int head = 0; head < kHeads; ++head) {
    const HeadFrame<const std::byte> frame(block.header, layout, block.frame.data(), head);
    for (int t = 0; t < params_.num_sinks; ++t) {
      for (int j = 0; j < shape_.head_dim; ++j) {
        const uint32_t k = frame.k_codes[k_map.row_word[t] + k_map.column_word[j]];
        const uint32_t v = frame.v_codes[v_map.row_word[j] + v_map.column_word[t]];
        ASSERT_EQ((k >> k_map.column_shift[j]) & ((1u << e.bits_k) - 1), 0u);
        ASSERT_EQ((v >> v_map.column_shift[t]) & ((1u << e.bits_v) - 1), 0u);
      }
      if (e.has_patterns) {
        ASSERT_EQ(frame.k_ids[RowPosition(t, kBlockTokens)], kRawPatternId);
        ASSERT_EQ(frame.v_ids[ColumnPosition(t, kBlockTokens)], kRawPatternId);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllEncodings, BlockCodecCpuTest, testing::ValuesIn(AllCases()));

constexpr KvShape kShape = {1, 2, 128};

// A zero pattern changes nothing.
TEST(BlockCodecCpuEquivalenceTest, ZeroPatternsGiveTheCodesOfKivi) {
  const TestTensor tensor = RandomTensor(3, 2, kBlockTokens, 128);
  CodecParams pattern_params = PresetFor("pkv2", kShape);
  pattern_params.gate_v = Gate::kNone;
  Codebook zeros(2, 128);
  for (int head = 0; head < 2; ++head) {
    zeros.AppendK(head, std::vector<uint16_t>(128));
    zeros.AppendV(head, std::vector<uint16_t>(128));
  }
  const CodecParams kivi_params = PresetFor("kivi2", kShape);
  const auto with = EncodeBlock(kShape, pattern_params, tensor.view(), zeros, Phase::kPrefill, 0);
  const auto kivi = EncodeBlock(kShape, kivi_params, tensor.view(), {}, Phase::kPrefill, 0);
  const PayloadLayout with_layout = PayloadLayout::Of(with.header);
  const PayloadLayout kivi_layout = PayloadLayout::Of(kivi.header);
  for (int head = 0; head < 2; ++head) {
    EXPECT_EQ(std::memcmp(with.frame.data() + head * with_layout.head_bytes,
                          kivi.frame.data() + head * kivi_layout.head_bytes,
                          static_cast<size_t>(kivi_layout.head_bytes)),
              0);
  }
}

// Per-channel groups do not see a shift that all their tokens share.
TEST(BlockCodecCpuEquivalenceTest, OnePatternForAllKTokensDecodesLikeKivi) {
  const TestTensor tensor = RandomTensor(4, 1, kBlockTokens, 128);
  const KvShape shape = {1, 1, 128};
  const CodecParams params = PresetFor("pkv2", shape);
  Codebook shared(1, 128);
  shared.AppendK(0, std::span(tensor.k).first(128));
  shared.AppendV(0, std::span(tensor.v).first(128));
  const auto with = EncodeBlock(shape, params, tensor.view(), shared, Phase::kPrefill, 0);
  const auto kivi =
      EncodeBlock(shape, PresetFor("kivi2", shape), tensor.view(), {}, Phase::kPrefill, 0);
  std::vector<float> a(kBlockTokens * 128), b(a.size());
  DequantizeKTile(with.header, with.frame.span(), with.codebook, 0, a.data());
  DequantizeKTile(kivi.header, kivi.frame.span(), {}, 0, b.data());
  const PayloadLayout layout = PayloadLayout::Of(kivi.header);
  const HeadFrame<const std::byte> frame(kivi.header, layout, kivi.frame.data(), 0);
  int equal_steps = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const int channel = static_cast<int>(i % 128), at = ColumnPosition(channel, 128);
    const double scale = Float16ToFloat(frame.k_scales[at]),
                 zero = Float16ToFloat(frame.k_zeros[at]);
    const double pattern = Float16ToFloat(shared.k(0)[channel]);
    // Within the sum of both decoders' bounds; and, but for ties, in the same step.
    ASSERT_LE(std::abs(double{a[i]} - b[i]),
              DecodeBound(scale, zero, 0, 2) +
                  DecodeBound(scale, std::abs(zero) + std::abs(pattern), pattern, 2));
    equal_steps += std::abs(double{a[i]} - b[i]) < scale / 2 ? 1 : 0;
  }
  EXPECT_GE(equal_steps, static_cast<int>(a.size() * 99 / 100));
}

TEST(BlockCodecCpuEquivalenceTest, HeadsAreEncodedApart) {
  const TestTensor both = RandomTensor(5, 2, kBlockTokens, 128);
  TestTensor second(1, kBlockTokens, 128);
  const size_t head_values = static_cast<size_t>(kBlockTokens) * 128;
  std::copy_n(both.k.begin() + head_values, head_values, second.k.begin());
  std::copy_n(both.v.begin() + head_values, head_values, second.v.begin());
  const KvShape one = {1, 1, 128};
  // One iteration: with more, K-means stops by a test over all heads of the layer.
  CodecParams params = PresetFor("pkv2", kShape);
  params.kmeans_iterations = 1;
  const auto mined_both = *MinePatterns(both.view(), params, {});
  const auto mined_one = *MinePatterns(second.view(), params, {});
  const auto a = EncodeBlock(kShape, params, both.view(), mined_both, Phase::kPrefill, 0);
  const auto b = EncodeBlock(one, params, second.view(), mined_one, Phase::kPrefill, 0);
  const PayloadLayout layout = PayloadLayout::Of(a.header);
  EXPECT_EQ(std::memcmp(a.frame.data() + layout.head_bytes, b.frame.data(),
                        static_cast<size_t>(layout.head_bytes)),
            0);
}

// Sums of squares of a group's values about their means, and of its codes' products with them.
struct Regression {
  double mean_code = 0, mean_target = 0, covariance = 0, variance = 0, products = 0, largest = 0;
  double num_values = 0, scale = 0, zero = 0;

  // S cov / var is 1 but for the rounding of S to fp16, of both sums, and of the means they are
  // about, which shift a sum by the product of their errors.
  double SlopeBound() const {
    const double n = num_values;
    const double mean_error = SumBound(kBlockTokens, largest);
    const double shift =
        n * mean_error * (SumBound(kBlockTokens, 15) / covariance + mean_error / variance);
    return kFloat16Unit + SumBound(kBlockTokens + 8, 1 + products / covariance) + shift;
  }
  double MeanBound() const {
    return Float16Bound(zero) + SumBound(kBlockTokens + 8, largest + std::abs(zero) + 15 * scale);
  }
};
Regression RegressionOf(const CodedTargets& t, const CodedHead& coded, bool is_k,
                        const CodedGroup& group) {
  Regression r;
  std::vector<std::pair<double, double>> pairs;
  for (int slot = group.first_slot; slot < group.end_slot; ++slot) {
    for (int j = group.first_channel; j < group.end_channel; ++j) {
      const CodedValue value = coded.Value(is_k, slot, j);
      pairs.emplace_back(value.code, t.target[t.At(slot, j)]);
      r.scale = value.scale;
      r.zero = value.zero;
    }
  }
  r.num_values = static_cast<double>(pairs.size());
  for (const auto& [code, target] : pairs) {
    r.mean_code += code / r.num_values;
    r.mean_target += target / r.num_values;
    r.largest = std::max(r.largest, std::abs(target));
  }
  for (const auto& [code, target] : pairs) {
    const double product = (code - r.mean_code) * (target - r.mean_target);
    r.covariance += product;
    r.products += std::abs(product);
    r.variance += (target - r.mean_target) * (target - r.mean_target);
  }
  return r;
}

TEST(BlockCodecCpuGainTest, DecodingKeepsGainAndMeanOfEveryGroup) {
  const TestTensor tensor = RandomTensor(12, 1, kBlockTokens, 64);
  const KvShape shape = {1, 1, 64};
  for (const char* preset : {"default", "default4"}) {
    const CodecParams params = PresetFor(preset, shape);
    const Codebook bank = *MinePatterns(tensor.view(), params, {});
    const auto block = EncodeBlock(shape, params, tensor.view(), bank, Phase::kPrefill, 0);
    const CodedHead coded(block.header, block.frame.span(), &block.codebook, 0);
    for (const bool is_k : {true, false}) {
      const CodedTargets targets = TargetsOf(block, tensor.view(), 0, is_k);
      for (const CodedGroup& group : GroupsOf(block.header, is_k)) {
        const Regression r = RegressionOf(targets, coded, is_k, group);
        if (r.scale == 0) continue;  // a constant group: alone with its pattern
        ASSERT_GT(r.covariance, 0);
        ASSERT_LE(std::abs(r.scale * r.covariance / r.variance - 1), r.SlopeBound()) << preset;
        ASSERT_LE(std::abs(r.scale * r.mean_code + r.zero - r.mean_target), r.MeanBound());
      }
    }
  }
}

// e^T Hd e of one slot in step order, and what the runs leave of it: sum over runs R of l^T S l, l
// the run's coded less target and S its complement; with the error that rounding the weights to
// bytes and the errors to units makes between them.
struct SeenError {
  double seen = 0, left = 0, slack = 0;
};
SeenError SeenErrorOf(const CodedTargets& t, int slot, const KeyFeedback& feedback, double unit,
                      const std::vector<double>& damped, const std::vector<double>& complements) {
  const int d = t.head_dim;
  const auto order = feedback.order_of(0);
  std::vector<double> e(d), left(d), off(d);
  double magnitude = 0;  // of the errors of the runs before
  for (int i = 0; i < d; ++i) {
    const size_t at = t.At(slot, order[i]);
    e[i] = t.decoded[at] - t.original[at];
    left[i] = t.decoded[at] - t.target[at];
    if (i % kFeedbackRun == 0) {
      magnitude = 0;
      for (int j = 0; j < i; ++j) magnitude += std::abs(e[j]);
    }
    const double scale = feedback.scales_of(0)[i];
    off[i] = scale / 2 * magnitude;
    for (const int8_t weight : feedback.weights_of(0).subspan(size_t(i) * d, d)) {
      off[i] += std::abs(weight * scale) * unit / 2;
    }
  }
  SeenError sum;
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < d; ++j) {
      sum.seen += e[i] * damped[size_t(i) * d + j] * e[j];
      if (i / kFeedbackRun != j / kFeedbackRun) continue;
      const double s = complements[size_t(i) * d + j];
      sum.left += left[i] * s * left[j];
      sum.slack +=
          std::abs(s) * (off[i] * std::abs(left[j]) + std::abs(left[i]) * off[j] + off[i] * off[j]);
    }
  }
  return sum;
}

TEST(BlockCodecCpuFeedbackTest, LeavesOfTheErrorThatQueriesSeeOnlyEachRunsOwn) {
  for (const int d : {64, 128}) {
    const TestTensor tensor = RandomTensor(13, 1, kBlockTokens, d);
    const KvShape shape = {1, 1, d};
    const CodecParams params = PresetFor("default", shape);
    const std::vector<float> moments = RandomMoments(14, 1, d, 1000);
    const auto feedback = FeedbackFrom(moments, d);
    const std::vector<double> damped = DampedReference(moments, d, 0.01, feedback->order_of(0));
    const std::vector<double> complements = RunComplements(damped, d);
    const Codebook bank = *MinePatterns(tensor.view(), params, {});
    const auto with =
        EncodeBlock(shape, params, tensor.view(), bank, Phase::kPrefill, 1, {}, feedback);
    const auto without = EncodeBlock(shape, params, tensor.view(), bank, Phase::kPrefill, 1);
    const CodedTargets t = TargetsOf(with, tensor.view(), 0, true);
    const CodedTargets plain = TargetsOf(without, tensor.view(), 0, true);
    double largest = 0;
    for (const double x : t.original) largest = std::max(largest, std::abs(x));
    const double unit = ErrorUnitFor(ToFiniteFloat16(static_cast<float>(largest))).value;
    double seen_with = 0, seen_without = 0;
    for (int slot = 0; slot < kBlockTokens; ++slot) {
      const SeenError own = SeenErrorOf(t, slot, *feedback, unit, damped, complements);
      ASSERT_LE(std::abs(own.seen - own.left), own.slack) << "slot " << slot;
      seen_with += own.seen;
      seen_without += SeenErrorOf(plain, slot, *feedback, unit, damped, complements).seen;
    }
    EXPECT_LT(seen_with, seen_without / 4) << "head_dim " << d;
    RecordProperty("seen_d" + std::to_string(d), std::to_string(seen_with / seen_without));
  }
}

TEST(BlockCodecCpuTest, Fp16BlockHoldsTheTensorItself) {
  const TestTensor tensor = RandomTensor(6, 2, kBlockTokens, 128);
  const auto block =
      EncodeBlock(kShape, PresetFor("fp16", kShape), tensor.view(), {}, Phase::kPrefill, 0);
  const size_t half = tensor.k.size() * sizeof(uint16_t) / 2;
  EXPECT_EQ(std::memcmp(block.frame.data(), tensor.k.data(), half), 0);
  EXPECT_EQ(std::memcmp(block.frame.data() + half, tensor.v.data(), half), 0);
  TestTensor out(2, kBlockTokens, 128);
  const auto codec = *MakeBlockCodec(kShape, PresetFor("fp16", kShape), Device::kCpu);
  ASSERT_THAT(codec->Decode(block.header, block.frame.span(), {}, {}, out.view()), IsOk());
  EXPECT_EQ(out.k, tensor.k);
  EXPECT_EQ(out.v, tensor.v);
}

TEST(BlockCodecCpuTest, DecodeTimeBlockCarriesThePatternsItAppends) {
  const TestTensor tensor = RandomTensor(8, 2, 2 * kBlockTokens, 128);
  const CodecParams params = PresetFor("pkv4", kShape);
  const Codebook table = *MinePatterns(tensor.view(), params, {});
  const auto block = EncodeBlock(kShape, params, tensor.view().Tokens(kBlockTokens, kBlockTokens),
                                 table, Phase::kDecode, 1);
  EXPECT_EQ(block.header.flags, kFlagHasPatterns | kFlagAppendsK | kFlagAppendsV);
  Codebook reader = table;
  ASSERT_THAT(reader.AppendFromBlock(block.header, block.frame.span()), IsOk());
  for (int head = 0; head < 2; ++head) {
    EXPECT_TRUE(std::ranges::equal(reader.k(head), block.codebook.k(head)));
    EXPECT_TRUE(std::ranges::equal(reader.v(head), block.codebook.v(head)));
  }
}

TEST(BlockCodecCpuTest, ConstantTensorDecodesExactly) {
  TestTensor tensor(1, kBlockTokens, 64);
  std::fill(tensor.k.begin(), tensor.k.end(), FloatToFloat16(3.25f));
  std::fill(tensor.v.begin(), tensor.v.end(), FloatToFloat16(-0.125f));
  const KvShape shape = {1, 1, 64};
  const CodecParams params = PresetFor("kivi2", shape);
  const auto block = EncodeBlock(shape, params, tensor.view(), {}, Phase::kPrefill, 0);
  TestTensor out(1, kBlockTokens, 64);
  const auto codec = *MakeBlockCodec(shape, params, Device::kCpu);
  ASSERT_THAT(codec->Decode(block.header, block.frame.span(), {}, {}, out.view()), IsOk());
  EXPECT_EQ(out.k, tensor.k);
  EXPECT_EQ(out.v, tensor.v);
}

TEST(BlockCodecCpuTest, LargestFloat16MagnitudesStayFinite) {
  TestTensor tensor(1, kBlockTokens, 64);
  TestRandom random(9);
  for (auto* values : {&tensor.k, &tensor.v}) {
    for (uint16_t& v : *values) v = random.Below(2) == 0 ? 0x7bff : 0xfbff;
  }
  const KvShape shape = {1, 1, 64};
  for (const char* preset : {"default", "default4"}) {
    CodecParams params = PresetFor(preset, shape);
    params.num_sinks = 0;
    const Codebook codebook = *MinePatterns(tensor.view(), params, {});
    for (const auto& feedback : {FeedbackFrom(RandomMoments(9, 1, 64, 300), 64), {}}) {
      const auto block =
          EncodeBlock(shape, params, tensor.view(), codebook, Phase::kPrefill, 0, {}, feedback);
      EXPECT_THAT(CheckFrameNumbers(block.header, 0, block.frame.span()), IsOk());
      EXPECT_LE(WorstShareOfBound(block, std::as_const(tensor).view(), 0, true), 1);
      EXPECT_LE(WorstShareOfBound(block, std::as_const(tensor).view(), 0, false), 1);
    }
  }
}

}  // namespace
}  // namespace pkv
