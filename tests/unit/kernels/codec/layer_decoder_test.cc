// What LayerDecoder refuses before it touches a device.
#include "pkv/kernels/layer_decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/codec/layer_decoder_backends.h"
#include "tests/support/block_fixture.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

constexpr KvShape kShape = {1, 2, 64};
constexpr int kBlocks = 3, kTokens = kBlocks * kBlockTokens;

class LayerDecoderTest : public testing::Test {
 protected:
  LayerDecoderTest() {
    layer_.pages = reinterpret_cast<const std::byte*>(0x4000);
    layer_.page_stride = 1 << 16;
    layer_.num_blocks = kBlocks;
    layer_.sinks = Address(0x8000);
    layer_.bank = &bank_;
    layer_.out = {Address(0x1000), Address(0x9000), 2, kTokens, 64, kTokens * 64};
  }
  // Addresses are looked at, not read.
  static uint16_t* Address(uintptr_t address) { return reinterpret_cast<uint16_t*>(address); }

  void ExpectRefused(const char* message) {
    EXPECT_THAT(CheckLayerDecode(kShape, params_, layer_),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
  }

  CodecParams params_ = PresetFor("default", kShape);
  DeviceBank bank_ = {Address(0x10000), 48, 0, 0};
  LayerDecode layer_;
};

TEST_F(LayerDecoderTest, WantsValidParams) {
  params_.num_sinks = 5;
  EXPECT_THAT(LayerDecoder::Make(kShape, params_, {}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("num_sinks 5")));
}

TEST_F(LayerDecoderTest, FactoryWantsADeviceOrGivesADecoder) {
  const auto decoder = LayerDecoder::Make(kShape, params_, {});
  if (decoder.ok()) {
    EXPECT_NE(*decoder, nullptr);
    return;
  }
#ifdef PKV_WITH_CUDA
  EXPECT_THAT(decoder, StatusIs(absl::StatusCode::kFailedPrecondition));
#else
  EXPECT_THAT(decoder, StatusIs(absl::StatusCode::kUnimplemented));
#endif
}

TEST_F(LayerDecoderTest, TakesAWholeLayerOrNoBlock) {
  EXPECT_THAT(CheckLayerDecode(kShape, params_, layer_), IsOk());
  layer_ = {};
  layer_.out = {nullptr, nullptr, 2, 0, 64, 0};
  EXPECT_THAT(CheckLayerDecode(kShape, params_, layer_), IsOk());
}

TEST_F(LayerDecoderTest, NamesTheShapeThatDiffers) {
  layer_.out.num_kv_heads = 3;
  ExpectRefused("3 kv heads of 64, not 2 of 64");
  layer_.out.num_kv_heads = 2;
  layer_.out.head_dim = 128;
  ExpectRefused("2 kv heads of 128, not 2 of 64");
  layer_.out.head_dim = 64;
  layer_.out.num_tokens = kTokens - 1;
  ExpectRefused("out tokens 383, not those of 3 blocks");
  layer_.out.num_tokens = kTokens;
  layer_.out.head_stride += 4;
  ExpectRefused("head_stride 24580");
  layer_.out.head_stride = kTokens * 64 - 8;
  ExpectRefused("head_stride 24568");
}

TEST_F(LayerDecoderTest, NamesTheNumberOfBlocksThatIsOutOfRange) {
  layer_.num_blocks = -1;
  ExpectRefused("num_blocks -1 not in 0..65535");
  layer_.num_blocks = kMaxDecodedBlocks;
  layer_.out.num_tokens = kMaxDecodedBlocks * kBlockTokens;
  layer_.out.head_stride = int64_t{layer_.out.num_tokens} * 64;
  EXPECT_THAT(CheckLayerDecode(kShape, params_, layer_), IsOk());
  ++layer_.num_blocks;
  ExpectRefused("num_blocks 65536 not in 0..65535");
}

TEST_F(LayerDecoderTest, NamesTheAddressThatIsMisaligned) {
  layer_.out.k = Address(0x1008);
  ExpectRefused("k is 8 bytes past a multiple of 16");
  layer_.out.k = Address(0x1000);
  layer_.out.v = nullptr;
  ExpectRefused("v is null");
  layer_.out.v = Address(0x9000);
  layer_.pages += 64;
  ExpectRefused("pages is 64 bytes past a multiple of 128");
  layer_.pages -= 64;
  layer_.page_stride -= 1;
  ExpectRefused("page_stride 65535");
  layer_.page_stride = 128;
  ExpectRefused("page_stride 128");
  layer_.page_stride = 1 << 16;
  layer_.sinks = nullptr;
  ExpectRefused("sinks is null");
  params_.num_sinks = 0;
  EXPECT_THAT(CheckLayerDecode(kShape, params_, layer_), IsOk());
}

TEST_F(LayerDecoderTest, WantsABankWhereThereArePatterns) {
  bank_.capacity = 256;
  ExpectRefused("bank capacity 256 not in 0..255");
  bank_ = {nullptr, 48, 0, 0};
  ExpectRefused("bank patterns is null");
  layer_.bank = nullptr;
  ExpectRefused("bank is null");
  params_ = PresetFor("kivi2", kShape);
  EXPECT_THAT(CheckLayerDecode(kShape, params_, layer_), IsOk());
}

}  // namespace
}  // namespace pkv
