// Frames of the vectorized encoder against those of the plain loops, byte by byte, on every
// instruction set.
#include "kernels/codec/head_encoder_simd.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/codec/block_codec_backends.h"
#include "kernels/codec/codec_math.h"
#include "tests/support/block_fixture.h"
#include "tests/support/simd_targets.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

constexpr int kHeads = 2;
constexpr uint64_t kSeed = 41;

enum class Input { kModelLike, kLattice, kConstantChannels, kOutliers };
constexpr Input kInputs[] = {Input::kModelLike, Input::kLattice, Input::kConstantChannels,
                             Input::kOutliers};

TestTensor Make(Input input, int num_tokens, int head_dim) {
  TestTensor tensor = RandomTensor(kSeed, kHeads, num_tokens, head_dim);
  TestRandom random(kSeed);
  for (std::vector<uint16_t>* values : {&tensor.k, &tensor.v}) {
    for (size_t i = 0; i < values->size(); ++i) {
      float value = Float16ToFloat((*values)[i]);
      if (input == Input::kLattice) value = static_cast<float>(random.Below(9) - 4) * 0.5f;
      if (input == Input::kConstantChannels && i % 3 == 0) value = i % 2 == 0 ? 0.0f : -0.0f;
      if (input == Input::kOutliers && random.Below(50) == 0) value *= 1e4f;
      (*values)[i] = ToFiniteFloat16(value);
    }
  }
  return tensor;
}

class HeadEncoderSimdTest : public testing::TestWithParam<std::string> {
 protected:
  void Check(const CodecParams& params, int head_dim) const {
    const KvShape shape = {1, kHeads, head_dim};
    const auto feedback =
        std::make_shared<const KeyFeedback>(RandomKeyFeedback(kSeed, kHeads, head_dim));
    for (const Input input : kInputs) {
      const TestTensor tokens = Make(input, 2 * kBlockTokens, head_dim);
      const Codebook bank = *MinePatterns(tokens.view(), params, {});
      for (const int index : {0, 1}) {
        const KvTensorView kv = tokens.view().Tokens(index * kBlockTokens, kBlockTokens);
        for (const bool with_feedback : {false, true}) {
          EncodedBlock block = EncodeBlock(shape, params, kv, bank, Phase::kPrefill, index, {},
                                           with_feedback ? feedback : nullptr);
          CompareWithPlainLoops(shape, params, kv, block);
        }
      }
    }
  }

 private:
  static void CompareWithPlainLoops(const KvShape& shape, const CodecParams& params,
                                    const KvTensorView& kv, const EncodedBlock& block) {
    AlignedBuffer want(block.header.frame_bytes), frame(block.header.frame_bytes);
    const auto encode = [&](CodecLoops loops, AlignedBuffer& out) {
      return MakeBlockCodecCpu(shape, params, loops)
          ->Encode(block.header, kv, block.assignment, block.codebook, {}, out.span());
    };
    ASSERT_THAT(encode(CodecLoops::kPlain, want), IsOk());
    ForEachSimdTarget([&] {
      ASSERT_THAT(encode(CodecLoops::kSimd, frame), IsOk());
      const auto a = want.span(), b = frame.span();
      const auto differ = std::mismatch(a.begin(), a.end(), b.begin());
      ASSERT_EQ(differ.first - a.begin(), static_cast<ptrdiff_t>(a.size()))
          << params.name << " head_dim " << shape.head_dim << " block "
          << block.header.first_token / kBlockTokens << ", seed " << kSeed;
    });
  }
};

TEST_P(HeadEncoderSimdTest, WritesTheBytesOfThePlainLoops) {
  for (const int head_dim : {64, 128})
    Check(PresetFor(GetParam(), {1, kHeads, head_dim}), head_dim);
}

TEST_P(HeadEncoderSimdTest, WritesTheBytesOfThePlainLoopsInSmallGroups) {
  for (const int group : {32, 64}) {
    CodecParams params = PresetFor(GetParam(), {1, kHeads, 128});
    params.encoding.k_group_tokens = params.encoding.v_group_channels = group;
    params.num_sinks = 4;  // a group that is no multiple of a vector
    Check(params, 128);
  }
}

TEST_P(HeadEncoderSimdTest, WritesTheBytesOfThePlainLoopsWithMixedBits) {
  CodecParams params = PresetFor(GetParam(), {1, kHeads, 128});
  SetBits(2, 4, params);
  Check(params, 128);
  SetBits(4, 2, params);
  params.num_sinks = 64;
  Check(params, 128);
}

INSTANTIATE_TEST_SUITE_P(Presets, HeadEncoderSimdTest,
                         testing::Values("kivi2", "pkv2", "default", "default4"));

}  // namespace
}  // namespace pkv
