// CPU and CUDA codecs write equal bytes and decode to equal values: memcmp, no tolerance.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "pkv/kernels/block_codec.h"
#include "tests/support/block_fixture.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/cuda_tensor.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

// What of the encoder is switched on over the preset.
enum class Extra { kNone, kFineTokens, kClipK, kWideClipK, kUnbiasedK, kUnbiasedV, kFeedback };
constexpr const char* kExtraNames[] = {"",           "fine tokens", "clip K",  "clip K to 0.40",
                                       "unbiased K", "unbiased V",  "feedback"};

struct Case {
  std::string preset;
  int bits_k, bits_v;  // 0: the preset as it is
  int group;
  int head_dim;
  int num_sinks;
  Phase phase = Phase::kPrefill;
  Extra extra = Extra::kNone;
};

std::ostream& operator<<(std::ostream& os, const Case& c) {
  return os << c.preset << " K" << c.bits_k << "V" << c.bits_v << " group " << c.group
            << " head_dim " << c.head_dim << " sinks " << c.num_sinks
            << (c.phase == Phase::kDecode ? " decode " : " prefill ")
            << kExtraNames[static_cast<int>(c.extra)];
}

std::vector<Case> PresetCases() {
  std::vector<Case> cases;
  for (const std::string& preset : PresetNames()) {
    for (const int head_dim : {64, 128}) {
      for (const Extra extra : {Extra::kNone, Extra::kFeedback}) {
        cases.push_back({preset, 0, 0, 0, head_dim, -1, Phase::kPrefill, extra});
      }
    }
  }
  return cases;
}

std::vector<Case> WidthCases(std::vector<const char*> presets, Extra extra) {
  std::vector<Case> cases;
  for (const char* preset : presets) {
    for (const int head_dim : {64, 128}) {
      for (const int group : {32, 64, 128}) {
        for (const int sinks : {0, 4, 16, 64}) {
          cases.push_back({preset, 2, 2, group, head_dim, sinks, Phase::kPrefill, extra});
          cases.push_back({preset, 4, 4, group, head_dim, sinks, Phase::kPrefill, extra});
        }
        cases.push_back({preset, 4, 2, group, head_dim, 16, Phase::kPrefill, extra});
        cases.push_back({preset, 2, 4, group, head_dim, 4, Phase::kPrefill, extra});
        cases.push_back({preset, 2, 2, group, head_dim, 0, Phase::kDecode, extra});
      }
    }
  }
  return cases;
}

std::vector<Case> ExtraCases() {
  std::vector<Case> cases;
  for (const Extra extra : {Extra::kFineTokens, Extra::kClipK, Extra::kWideClipK, Extra::kUnbiasedK,
                            Extra::kUnbiasedV, Extra::kFeedback}) {
    for (const int head_dim : {64, 128}) {
      for (const int group : {32, 64, 128}) {
        for (const int sinks : {0, 4, 16, 64}) {
          cases.push_back({"kivi2", 2, 2, group, head_dim, sinks, Phase::kPrefill, extra});
        }
        if (extra == Extra::kFineTokens) continue;  // of 2-bit K only
        cases.push_back({"pkv4", 4, 4, group, head_dim, 4, Phase::kDecode, extra});
      }
    }
  }
  return cases;
}

void SwitchOn(Extra extra, CodecParams& params) {
  if (extra == Extra::kFineTokens) params.encoding.k_fine_tokens = kFineTokens;
  if (extra == Extra::kClipK || extra == Extra::kWideClipK) params.clip_k = Clip::kSearch;
  if (extra == Extra::kWideClipK) params.clip_k_floor = 0.4;
  if (extra == Extra::kUnbiasedK) params.unbiased_k = true;
  if (extra == Extra::kUnbiasedV) params.unbiased_v = true;
}

class BlockCodecParityTest : public CudaTest, public testing::WithParamInterface<Case> {
 protected:
  static constexpr uint64_t kSeed = 2026;
  static constexpr int kHeads = 3;

  BlockCodecParityTest() {
    RecordProperty("seed", static_cast<int>(kSeed));
    const Case& c = GetParam();
    SwitchOn(c.extra, params_);
    if (c.bits_k == 0) return;
    params_.encoding.bits_k = c.bits_k;
    params_.encoding.bits_v = c.bits_v;
    params_.encoding.k_group_tokens = c.group;
    params_.encoding.v_group_channels = std::min(c.group, c.head_dim);
    if (c.bits_k == 4) params_.encoding.k_fine_tokens = 0;
    params_.num_sinks = c.num_sinks;
  }

  EncodedBlock EncodeOnCpu() const {
    const Codebook table = *MinePatterns(tensor_.view(), params_, {});
    std::shared_ptr<const KeyFeedback> feedback;
    if (GetParam().extra == Extra::kFeedback) {
      feedback = std::make_shared<KeyFeedback>(RandomKeyFeedback(kSeed, kHeads, shape_.head_dim));
    }
    return EncodeBlock(shape_, params_, tensor_.view(), table, GetParam().phase, 0, {}, feedback);
  }
  ComputeContext cuda() const { return {.device = Device::kCuda, .stream = stream()}; }

  const KvShape shape_ = {1, kHeads, GetParam().head_dim};
  CodecParams params_ = PresetFor(GetParam().preset, shape_);
  // Head 0 looks like a model's, head 1 is constant, head 2 holds the ends and zeros of fp16.
  static TestTensor HardTensor(int head_dim) {
    static_assert(kHeads >= 3);
    TestTensor tensor = RandomTensor(kSeed, kHeads, kBlockTokens, head_dim);
    const uint16_t ends[] = {0x7bff, 0xfbff, 0x0000, 0x8000, 0x0001, 0x8001, 0x0400, 0x3c00};
    TestRandom random(kSeed);
    const size_t stride = size_t{kBlockTokens} * head_dim;
    for (auto* rows : {&tensor.k, &tensor.v}) {
      std::fill_n(rows->begin() + stride, stride, uint16_t{0x3555});
      for (size_t i = 2 * stride; i < 3 * stride; ++i) (*rows)[i] = ends[random.Below(8)];
    }
    return tensor;
  }
  const TestTensor tensor_ = HardTensor(GetParam().head_dim);
};

TEST_P(BlockCodecParityTest, EncodesToEqualBytes) {
  const EncodedBlock cpu = EncodeOnCpu();
  CudaTensor device(tensor_, stream());
  auto frame = DeviceBuffer::Make(cpu.frame.size(), stream());
  ASSERT_THAT(frame, IsOk());
  const auto codec = MakeBlockCodec(shape_, params_, Device::kCuda);
  ASSERT_THAT(codec, IsOk());
  ASSERT_THAT((*codec)->Encode(cpu.header, device.view(), cpu.assignment, cpu.codebook, cuda(),
                               frame->span()),
              IsOk());
  std::vector<std::byte> bytes(cpu.frame.size());
  ASSERT_THAT(frame->CopyToHost(bytes), IsOk());
  for (size_t i = 0; i < bytes.size(); ++i) {
    ASSERT_EQ(bytes[i], cpu.frame.data()[i]) << "first difference at byte " << i;
  }
}

TEST_P(BlockCodecParityTest, DecodesToEqualValues) {
  const EncodedBlock cpu = EncodeOnCpu();
  TestTensor want(kHeads, kBlockTokens, shape_.head_dim), got = want;
  const auto cpu_codec = MakeBlockCodec(shape_, params_, Device::kCpu);
  ASSERT_THAT((*cpu_codec)->Decode(cpu.header, cpu.frame.span(), cpu.codebook, {}, want.view()),
              IsOk());
  CudaTensor out(got, stream());
  auto frame = DeviceBuffer::CopyOf(cpu.frame.span(), stream());
  ASSERT_THAT(frame, IsOk());
  const auto codec = MakeBlockCodec(shape_, params_, Device::kCuda);
  ASSERT_THAT(codec, IsOk());
  ASSERT_THAT((*codec)->Decode(cpu.header, frame->span(), cpu.codebook, cuda(), out.view()),
              IsOk());
  out.CopyToHost(got);
  EXPECT_EQ(got.k, want.k);
  EXPECT_EQ(got.v, want.v);
}

INSTANTIATE_TEST_SUITE_P(Presets, BlockCodecParityTest, testing::ValuesIn(PresetCases()));
INSTANTIATE_TEST_SUITE_P(Widths, BlockCodecParityTest,
                         testing::ValuesIn(WidthCases({"kivi2", "pkv2", "default"}, Extra::kNone)));
INSTANTIATE_TEST_SUITE_P(WidthsWithFeedback, BlockCodecParityTest,
                         testing::ValuesIn(WidthCases({"default"}, Extra::kFeedback)));
INSTANTIATE_TEST_SUITE_P(Extras, BlockCodecParityTest, testing::ValuesIn(ExtraCases()));

}  // namespace
}  // namespace pkv
