// What LayerCompressor refuses before it touches a device.
#include "pkv/kernels/layer_compressor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/codec/layer_compressor_backends.h"
#include "tests/support/block_fixture.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

constexpr KvShape kShape = {1, 2, 64};
constexpr int kTokens = 300;

class LayerCompressorTest : public testing::Test {
 protected:
  LayerCompressorTest() {
    layer_.kv = {Address(0x1000), Address(0x9000), 2, kTokens, 64, kTokens * 64};
    layer_.bank = &bank_;
    layer_.pages = reinterpret_cast<std::byte*>(0x4000);
    layer_.page_stride = 1 << 16;
    layer_.sinks = Address(0x8000);
    flush_.kv = {Address(0x1000), Address(0x9000), 2, kBlockTokens, 64, kBlockTokens * 64};
    flush_.bank = &bank_;
    flush_.page = reinterpret_cast<std::byte*>(0x4000);
  }
  // Addresses are looked at, not read.
  static uint16_t* Address(uintptr_t address) { return reinterpret_cast<uint16_t*>(address); }

  void ExpectRefused(const char* message) {
    EXPECT_THAT(CheckLayer(kShape, params_, kTokens, layer_),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
  }

  CodecParams params_ = PresetFor("default", kShape);
  DeviceBank bank_ = {Address(0x10000), 48, 0, 0};
  LayerCompression layer_;
  WindowFlush flush_;
};

TEST_F(LayerCompressorTest, WantsABlockAtLeastAndADevice) {
  EXPECT_THAT(LayerCompressor::Make(kShape, params_, 127, {}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("max_tokens 127")));
  params_.num_sinks = 5;
  EXPECT_THAT(LayerCompressor::Make(kShape, params_, kTokens, {}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("num_sinks 5")));
}

TEST_F(LayerCompressorTest, TakesAWholeLayer) {
  EXPECT_THAT(CheckLayer(kShape, params_, kTokens, layer_), IsOk());
  EXPECT_THAT(CheckFlush(kShape, params_, flush_), IsOk());
}

TEST_F(LayerCompressorTest, NamesTheShapeThatDiffers) {
  layer_.kv.num_kv_heads = 3;
  ExpectRefused("3 kv heads of 64, not 2 of 64");
  layer_.kv.num_kv_heads = 2;
  layer_.kv.num_tokens = kTokens + 1;
  ExpectRefused("kv tokens 301 not in 0..300");
  layer_.kv.num_tokens = kTokens;
  layer_.kv.head_stride += 4;
  ExpectRefused("head_stride 19204");
}

TEST_F(LayerCompressorTest, NamesTheAddressThatIsMisaligned) {
  layer_.kv.v = Address(0x1008);
  ExpectRefused("v is 8 bytes past a multiple of 16");
  layer_.kv.v = nullptr;
  ExpectRefused("v is null");
  layer_.kv.v = Address(0x9000);
  layer_.pages += 64;
  ExpectRefused("pages is 64 bytes past a multiple of 128");
  layer_.pages -= 64;
  layer_.page_stride -= 1;
  ExpectRefused("page_stride 65535");
  layer_.page_stride += 1;
  layer_.feedback = {reinterpret_cast<const uint8_t*>(0x100), nullptr};
  ExpectRefused("feedback weights is null");
  layer_.feedback = {};
  layer_.sinks = nullptr;
  ExpectRefused("sinks is null");
  layer_.at_start = false;
  EXPECT_THAT(CheckLayer(kShape, params_, kTokens, layer_), IsOk());
}

TEST_F(LayerCompressorTest, NamesTheBankThatIsTooSmall) {
  bank_.capacity = 31;
  ExpectRefused("bank capacity 31 not in 32..255");
  layer_.mine = false;
  EXPECT_THAT(CheckLayer(kShape, params_, kTokens, layer_), IsOk());
  bank_.num_v = 31;  // full: V appends
  EXPECT_THAT(CheckFlush(kShape, params_, flush_),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bank capacity 31")));
  layer_.bank = nullptr;
  ExpectRefused("bank is null");
}

}  // namespace
}  // namespace pkv
