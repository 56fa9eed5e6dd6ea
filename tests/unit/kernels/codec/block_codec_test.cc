#include "pkv/kernels/block_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/support/block_fixture.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

constexpr KvShape kShape = {3, 2, 64};

// A valid call to Encode and Decode; each test spoils one argument.
class BlockCodecTest : public testing::Test {
 protected:
  absl::Status Encode() {
    return codec_->Encode(header_, tensor_.view(), assignment_, codebook_, {}, frame_.span());
  }
  absl::Status Decode() {
    return codec_->Decode(header_, frame_.span(), codebook_, {}, out_.view());
  }

  const CodecParams params_ = PresetFor("pkv2", kShape);
  TestTensor tensor_ = RandomTensor(1, kShape.num_kv_heads, kBlockTokens, kShape.head_dim);
  TestTensor out_{kShape.num_kv_heads, kBlockTokens, kShape.head_dim};
  Codebook codebook_ = *MinePatterns(tensor_.view(), params_, {});
  PatternAssignment assignment_ =
      *AssignPatterns(tensor_.view(), 0, params_, codebook_, Phase::kPrefill, {});
  ObjectHeader header_ = BlockHeaderFor(kShape, params_, codebook_);
  AlignedBuffer frame_{header_.frame_bytes};
  std::unique_ptr<BlockCodec> codec_ = *MakeBlockCodec(kShape, params_, Device::kCpu);
};

TEST_F(BlockCodecTest, AcceptsMatchingArguments) {
  EXPECT_THAT(Encode(), IsOk());
  EXPECT_THAT(Decode(), IsOk());
}

TEST_F(BlockCodecTest, RefusesAnotherEncoding) {
  header_.bits_k = 4;
  EXPECT_THAT(Encode(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bits_k 4")));
  EXPECT_THAT(Decode(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bits_k 4")));
}

TEST_F(BlockCodecTest, RefusesFineCodesAndRotationThatItsParamsDoNotHave) {
  header_.k_fine_tokens = kFineTokens;
  EXPECT_THAT(Encode(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("k_fine_tokens 16")));
  EXPECT_THAT(Decode(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("k_fine_tokens 16")));
  header_.k_fine_tokens = 0;
  header_.flags |= kFlagRotated;
  EXPECT_THAT(Encode(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("rotated 1")));
  EXPECT_THAT(Decode(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("rotated 1")));
}

TEST_F(BlockCodecTest, RefusesAnotherShape) {
  tensor_ = RandomTensor(1, 1, kBlockTokens, kShape.head_dim);
  EXPECT_THAT(Encode(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("kv heads 1")));
  out_ = TestTensor(kShape.num_kv_heads, kBlockTokens - 1, kShape.head_dim);
  ASSERT_THAT(Decode(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("tokens 127")));
}

TEST_F(BlockCodecTest, RefusesAFrameOfAnotherSize) {
  frame_ = AlignedBuffer(header_.frame_bytes - kFrameAlignment);
  EXPECT_THAT(Encode(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("frame bytes")));
  EXPECT_THAT(Decode(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("frame bytes")));
}

TEST_F(BlockCodecTest, RefusesAMisalignedFrame) {
  AlignedBuffer larger(header_.frame_bytes + kFrameAlignment);
  const auto shifted = larger.span().subspan(64, header_.frame_bytes);
  EXPECT_THAT(codec_->Encode(header_, tensor_.view(), assignment_, codebook_, {}, shifted),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("modulo 128 64")));
}

TEST_F(BlockCodecTest, RefusesABankOfAnotherSize) {
  codebook_.AppendK(0, std::vector<uint16_t>(kShape.head_dim));
  codebook_.AppendK(1, std::vector<uint16_t>(kShape.head_dim));
  EXPECT_THAT(Encode(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("codebook K patterns 33")));
}

TEST_F(BlockCodecTest, RefusesAPatternIdOutsideTheBank) {
  assignment_.v[kBlockTokens + 5] = 32;
  EXPECT_THAT(Encode(), StatusIs(absl::StatusCode::kInvalidArgument,
                                 HasSubstr("V pattern id 32 at kv head 1, token 5")));
}

TEST_F(BlockCodecTest, RefusesAPatternIdOnASink) {
  header_.num_sinks = 16;
  const auto sizes = ComputeObjectSizes(header_);
  ASSERT_THAT(sizes, IsOk());
  frame_ = AlignedBuffer(sizes->frame_bytes);
  EXPECT_THAT(Encode(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("sink")));
}

TEST_F(BlockCodecTest, AcceptsMatchingFeedback) {
  assignment_.feedback = std::make_shared<KeyFeedback>(
      MakeKeyFeedback(std::vector<float>(2 * 64 * 64), kShape.head_dim, 0.01));
  EXPECT_THAT(Encode(), IsOk());
}

TEST_F(BlockCodecTest, RefusesFeedbackForAnotherShape) {
  assignment_.feedback = std::make_shared<KeyFeedback>(
      MakeKeyFeedback(std::vector<float>(64 * 64), kShape.head_dim, 0.01));
  EXPECT_THAT(Encode(), StatusIs(absl::StatusCode::kInvalidArgument,
                                 HasSubstr("feedback steps 64 is not 128")));
}

TEST_F(BlockCodecTest, RefusesFeedbackWithoutAScaleForEachStep) {
  KeyFeedback feedback = MakeKeyFeedback(std::vector<float>(2 * 64 * 64), kShape.head_dim, 0.01);
  feedback.scales.pop_back();
  assignment_.feedback = std::make_shared<KeyFeedback>(feedback);
  EXPECT_THAT(Encode(), StatusIs(absl::StatusCode::kInvalidArgument,
                                 HasSubstr("feedback scales 127 is not 128")));
}

TEST_F(BlockCodecTest, RefusesFeedbackForAChannelThatIsNotThere) {
  KeyFeedback feedback = MakeKeyFeedback(std::vector<float>(2 * 64 * 64), kShape.head_dim, 0.01);
  feedback.order[64 + 3] = 64;
  assignment_.feedback = std::make_shared<KeyFeedback>(feedback);
  EXPECT_THAT(Encode(), StatusIs(absl::StatusCode::kInvalidArgument,
                                 HasSubstr("feedback channel 64 at kv head 1, step 3")));
}

// What a GPU's encoder could not take back: it codes a run's channels at once.
TEST_F(BlockCodecTest, RefusesFeedbackThatIsNone) {
  const KeyFeedback valid = MakeKeyFeedback(std::vector<float>(2 * 64 * 64), kShape.head_dim, 0.01);
  const auto message = [&](const auto& change) {
    KeyFeedback feedback = valid;
    change(feedback);
    assignment_.feedback = std::make_shared<KeyFeedback>(feedback);
    const absl::Status status = Encode();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message([](KeyFeedback& f) { f.order[64 + 3] = f.order[64 + 1]; }),
              HasSubstr("feedback channel 1 at kv head 1, step 3 came before"));
  EXPECT_THAT(message([](KeyFeedback& f) { f.weights[64 * 64 + 9 * 64 + 8] = 5; }),
              HasSubstr("feedback weights at kv head 1, step 9 are not 0 from its run on, step 8"));
  EXPECT_THAT(message([](KeyFeedback& f) { f.weights[9 * 64 + 7] = -128; }),
              HasSubstr("feedback weight -128 at kv head 0, step 9 is below -127"));
  for (const float scale : {INFINITY, NAN, -1.0f, 1e-40f, 1e38f}) {
    EXPECT_THAT(message([&](KeyFeedback& f) { f.scales[70] = scale; }),
                HasSubstr("at kv head 1, step 6 is neither 0 nor in 2^-60..2^60"));
  }
}

TEST_F(BlockCodecTest, NamesThePlaceOfAnInfinity) {
  tensor_.v[(kBlockTokens + 7) * kShape.head_dim + 9] = 0xfc00;
  EXPECT_THAT(Encode(), StatusIs(absl::StatusCode::kInvalidArgument,
                                 HasSubstr("V is -inf at kv head 1, token 7, channel 9")));
}

TEST_F(BlockCodecTest, FactoryRefusesInvalidParams) {
  CodecParams params = params_;
  params.num_sinks = 3;
  EXPECT_THAT(MakeBlockCodec(kShape, params, Device::kCpu),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("num_sinks 3")));
}

#ifndef PKV_WITH_CUDA
TEST_F(BlockCodecTest, FactoryHasNoCudaInThisBuild) {
  EXPECT_THAT(MakeBlockCodec(kShape, params_, Device::kCuda),
              StatusIs(absl::StatusCode::kUnimplemented));
}
#endif

}  // namespace
}  // namespace pkv
