// Degenerate K and V through mining, assignment, codec and attention, with every preset: nothing
// fails, nothing is NaN, and errors stay within the bound that the residuals give.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "pkv/block/object_view.h"
#include "pkv/kernels/block_codec.h"
#include "pkv/kernels/paged_attention.h"
#include "pkv/kernels/rotation.h"
#include "tests/support/block_fixture.h"
#include "tests/support/coded_targets.h"
#include "tests/support/error_bound.h"
#include "tests/support/feedback_reference.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

constexpr int kHeads = 2, kTokens = 2 * kBlockTokens;
constexpr uint64_t kSeed = 11;

enum class Input {
  kZeros,
  kAllEqual,          // one value everywhere
  kConstantChannels,  // every other channel never changes
  kRepeatedToken,     // all vectors alike
  kOutliers,          // one value in 50 is +-10,000
  kOneOddToken,       // zeros, and one vector of 10,000
  kTiny,              // the smallest fp16 numbers
};
constexpr Input kInputs[] = {Input::kZeros,         Input::kAllEqual, Input::kConstantChannels,
                             Input::kRepeatedToken, Input::kOutliers, Input::kOneOddToken,
                             Input::kTiny};

double ValueOf(Input input, TestRandom& random, int token, int channel) {
  const double noise = random.Normal(), choice = random.Uniform();
  switch (input) {
    case Input::kZeros:
      return 0;
    case Input::kAllEqual:
      return 0.37;
    case Input::kConstantChannels:
      return channel % 2 == 0 ? 3.0 * channel - 50 : noise;
    case Input::kRepeatedToken:
      return std::sin(1.0 + channel) * 5;
    case Input::kOutliers:
      return choice < 0.02 ? (choice < 0.01 ? 1e4 : -1e4) : noise;
    case Input::kOneOddToken:
      return token == 77 ? 1e4 : 0;
    case Input::kTiny:
      return (channel + token) % 3 * 0x1.0p-24;
  }
  return 0;
}

class BlockCodecDegenerateTest : public testing::TestWithParam<std::tuple<std::string, int>> {
 protected:
  BlockCodecDegenerateTest() { RecordProperty("seed", static_cast<int>(kSeed)); }

  TestTensor Make(Input input) const {
    TestRandom random(kSeed);
    TestTensor tensor(kHeads, kTokens, shape_.head_dim);
    for (std::vector<uint16_t>* values : {&tensor.k, &tensor.v}) {
      for (size_t i = 0; i < values->size(); ++i) {
        const int channel = static_cast<int>(i % shape_.head_dim);
        const int token = static_cast<int>(i / shape_.head_dim % kTokens);
        (*values)[i] = FloatToFloat16(static_cast<float>(ValueOf(input, random, token, channel)));
      }
    }
    return tensor;
  }

  // As a worker hands them to the codec: rotated, saturated, when the encoding is.
  TestTensor Stored(TestTensor tensor) const {
    if (!params_.encoding.rotated) return tensor;
    for (std::vector<uint16_t>* values : {&tensor.k, &tensor.v}) {
      RotateFloat16Rows(values->data(), kHeads * kTokens, shape_.head_dim, values->data());
    }
    return tensor;
  }

  // The encoded block `index`, with patterns mined from the first `prompt_tokens` tokens.
  EncodedBlock Encode(const TestTensor& tensor, int prompt_tokens, Phase phase, int index,
                      std::shared_ptr<const KeyFeedback> feedback = nullptr) const {
    const auto codebook = MinePatterns(tensor.view().Tokens(0, prompt_tokens), params_, {});
    EXPECT_THAT(codebook, IsOk());
    return EncodeBlock(shape_, params_, tensor.view().Tokens(index * kBlockTokens, kBlockTokens),
                       *codebook, phase, index, {}, std::move(feedback));
  }

  // Residuals of one group, and what they decode to.
  struct Group {
    double low = INFINITY, high = -INFINITY, squared_error = 0, largest_error = 0, pattern = 0;
    int count = 0;
    void Add(float value, float from_pattern, float decoded) {
      const double residual = value - from_pattern, error = std::abs(double{decoded} - value);
      low = std::min(low, residual);
      high = std::max(high, residual);
      pattern = std::max(pattern, std::abs(double{from_pattern}));
      squared_error += error * error;
      largest_error = std::max(largest_error, error);
      ++count;
    }
    // Of one value that was not clipped.
    double Bound(int bits) const {
      const double scale = (high - low) / ((1 << bits) - 1);
      const double largest_zero = std::max(std::abs(low), std::abs(high));
      // The stored scale differs by its rounding to fp16; at 0 the bound is the smallest step's.
      return std::max(DecodeBound(scale * (1 + 2 * kFloat16Unit), largest_zero, pattern, bits),
                      DecodeBound(0, largest_zero, pattern, bits));
    }
  };

  // K and V against the bounds of their groups. A clip search may move single values further, but
  // only for a smaller squared error of the group; with the gain corrected, with feedback and with
  // fine codes, values stay within what CodedBound() and FineBound() allow.
  void CheckErrors(const EncodedBlock& block, const KvTensorView& kv, bool is_k) const {
    const bool plain = is_k ? !params_.unbiased_k && !params_.feedback_k : !params_.unbiased_v;
    for (int head = 0; head < kHeads && !params_.encoding.is_fp16(); ++head) {
      ASSERT_LE(WorstShareOfBound(block, kv, head, is_k), 1) << (is_k ? "K" : "V");
    }
    CheckDecodedErrors(block, kv, is_k, plain);
  }

  // Decoded tiles are finite and sinks exact; plain codes are within the bound of their group.
  void CheckDecodedErrors(const EncodedBlock& block, const KvTensorView& kv, bool is_k,
                          bool plain) const {
    const int d = shape_.head_dim;
    const Encoding& e = params_.encoding;
    const int bits = is_k ? e.bits_k : e.bits_v;
    std::vector<float> tile(size_t(kBlockTokens) * d);
    for (int head = 0; head < kHeads; ++head) {
      const auto dequantize = is_k ? DequantizeKTile : DequantizeVTile;
      dequantize(block.header, block.frame.span(), block.codebook, head, tile.data());
      std::vector<Group> groups(size_t(kBlockTokens) * d);
      for (int t = 0; t < kBlockTokens; ++t) {
        for (int j = 0; j < d; ++j) {
          const float value = Float16ToFloat((is_k ? kv.k_row(head, t) : kv.v_row(head, t))[j]);
          const float decoded = tile[size_t(t) * d + j];
          ASSERT_TRUE(std::isfinite(decoded));
          if (e.is_fp16() || t < block.header.num_sinks) {
            ASSERT_EQ(decoded, value);
            continue;
          }
          const int at = is_k ? t / e.k_group_tokens * d + j : t * d + j / e.v_group_channels;
          groups[at].Add(value, PatternOf(block, head, t, j, is_k), decoded);
        }
      }
      for (const Group& group : groups) {
        if (group.count == 0 || !plain) continue;
        const double bound = group.Bound(bits);
        ASSERT_LE(group.squared_error, group.count * bound * bound) << (is_k ? "K" : "V");
        if (is_k || params_.clip_v == Clip::kNone) {
          ASSERT_LE(group.largest_error, bound);
        }
      }
    }
  }

  float PatternOf(const EncodedBlock& block, int head, int t, int j, bool is_k) const {
    if (!params_.encoding.has_patterns) return 0;
    const auto& ids = is_k ? block.assignment.k : block.assignment.v;
    const int id = ids[size_t(head) * kBlockTokens + t];
    if (id == kRawPatternId) return 0;
    const auto patterns = is_k ? block.codebook.k(head) : block.codebook.v(head);
    return Float16ToFloat(patterns[size_t(id) * shape_.head_dim + j]);
  }

  // One query for each head over the block alone.
  void CheckAttention(const EncodedBlock& block, const KvTensorView& kv) const {
    const BlockPage page{&block.header, block.frame.span(), &block.codebook};
    std::vector<float> q(size_t(kHeads) * shape_.head_dim, 0.25f), out(q.size());
    AttentionArgs args;
    args.q = q.data();
    args.num_qo_heads = kHeads;
    args.sm_scale = 0.125f;
    args.pages = {&page, 1};
    args.window = kv.Tokens(0, 0);
    args.out = out.data();
    ASSERT_THAT(PagedAttention(args, {}), IsOk());
    for (const float x : out) ASSERT_TRUE(std::isfinite(x));
  }

  void CheckAll(const TestTensor& tensor, int prompt_tokens, Phase phase, int index,
                std::shared_ptr<const KeyFeedback> feedback = nullptr) const {
    const EncodedBlock block = Encode(tensor, prompt_tokens, phase, index, std::move(feedback));
    ASSERT_THAT(CheckFrameNumbers(block.header, 0, block.frame.span()), IsOk());
    const KvTensorView kv = tensor.view().Tokens(index * kBlockTokens, kBlockTokens);
    CheckErrors(block, kv, /*is_k=*/true);
    CheckErrors(block, kv, /*is_k=*/false);
    CheckAttention(block, kv);
  }

  // Feedback from moments that no working model has, and from one that it may.
  std::vector<std::shared_ptr<const KeyFeedback>> DegenerateFeedback() const {
    const int d = shape_.head_dim;
    const size_t size = size_t(d) * d;
    std::vector<float> zero(kHeads * size), rank_one = zero, one_loud = zero, nan = zero;
    for (size_t i = 0; i < zero.size(); ++i) {
      const size_t row = i % size / d, column = i % d;
      rank_one[i] = static_cast<float>(std::sin(1.0 + row) * std::sin(1.0 + column));
      one_loud[i] = row == 5 && column == 5 ? 1e30f : (row == column ? 1e-30f : 0.0f);
    }
    nan[3] = std::nanf("");
    std::vector<float> huge = rank_one, overflown = rank_one;
    for (float& x : huge) x *= 1e30f;
    for (float& x : overflown) x *= INFINITY;
    std::vector<std::shared_ptr<const KeyFeedback>> all;
    for (const auto& moments :
         {zero, rank_one, one_loud, nan, huge, overflown, RandomMoments(kSeed, kHeads, d, 200)}) {
      all.push_back(FeedbackFrom(moments, d));
    }
    return all;
  }

  const KvShape shape_{1, kHeads, std::get<1>(GetParam())};
  const CodecParams params_ = PresetFor(std::get<0>(GetParam()), shape_);
};

TEST_P(BlockCodecDegenerateTest, KeepsErrorsWithinBoundsAfterPrefill) {
  for (const Input input : kInputs) {
    SCOPED_TRACE(static_cast<int>(input));
    for (const TestTensor& tensor : {Make(input), Stored(Make(input))}) {
      CheckAll(tensor, kTokens, Phase::kPrefill, 0);
      CheckAll(tensor, kTokens, Phase::kPrefill, 1);
    }
  }
}

TEST_P(BlockCodecDegenerateTest, KeepsErrorsWithinBoundsWhateverTheQueriesWere) {
  if (!params_.feedback_k) return;
  for (const Input input : kInputs) {
    const TestTensor tensor = Stored(Make(input));
    for (const auto& feedback : DegenerateFeedback()) {
      SCOPED_TRACE(static_cast<int>(input));
      CheckAll(tensor, kTokens, Phase::kPrefill, 1, feedback);
    }
  }
}

TEST_P(BlockCodecDegenerateTest, KeepsErrorsWithinBoundsWhileDecodingFromAPromptOfOneToken) {
  for (const Input input : kInputs) {
    SCOPED_TRACE(static_cast<int>(input));
    CheckAll(Make(input), 1, Phase::kDecode, 1);
    CheckAll(Stored(Make(input)), 1, Phase::kDecode, 1);
  }
}

TEST_P(BlockCodecDegenerateTest, RestoresWhatNeverChangesExactly) {
  // Groups without a range: K of equal vectors, K and V of equal values.
  for (const Input input : {Input::kZeros, Input::kAllEqual, Input::kRepeatedToken}) {
    const TestTensor tensor = Make(input);
    const EncodedBlock block = Encode(tensor, kTokens, Phase::kPrefill, 1);
    std::vector<float> tile(size_t(kBlockTokens) * shape_.head_dim);
    DequantizeKTile(block.header, block.frame.span(), block.codebook, 1, tile.data());
    const uint16_t* row = tensor.view().k_row(1, kBlockTokens);
    for (size_t i = 0; i < tile.size(); ++i) ASSERT_EQ(tile[i], Float16ToFloat(row[i])) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Presets, BlockCodecDegenerateTest,
                         testing::Combine(testing::ValuesIn(PresetNames()),
                                          testing::Values(64, 128)));

}  // namespace
}  // namespace pkv
