// What is particular to the CUDA codec; tests/parity holds its bytes to those of the CPU codec.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "pkv/kernels/block_codec.h"
#include "tests/support/block_fixture.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/cuda_tensor.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

constexpr KvShape kShape = {1, 2, 64};

TEST(BlockCodecCudaHostTest, FactoryWantsADeviceOrGivesACodec) {
  const auto codec = MakeBlockCodec(kShape, PresetFor("kivi2", kShape), Device::kCuda);
  if (codec.ok()) {
    EXPECT_NE(*codec, nullptr);
  } else {
    EXPECT_THAT(codec, StatusIs(absl::StatusCode::kFailedPrecondition));
  }
}

using BlockCodecCudaTest = CudaTest;

TEST_F(BlockCodecCudaTest, NamesThePlaceOfAnInfinity) {
  TestTensor tensor = RandomTensor(1, 2, kBlockTokens, 64);
  tensor.v[(kBlockTokens + 7) * 64 + 9] = 0xfc00;
  CudaTensor device(tensor, stream());
  const CodecParams params = PresetFor("kivi2", kShape);
  const ObjectHeader header = BlockHeaderFor(kShape, params, {});
  auto frame = DeviceBuffer::Make(header.frame_bytes, stream());
  ASSERT_THAT(frame, IsOk());
  const auto codec = MakeBlockCodec(kShape, params, Device::kCuda);
  ASSERT_THAT(codec, IsOk());
  EXPECT_THAT((*codec)->Encode(header, device.view(), {}, {},
                               {.device = Device::kCuda, .stream = stream()}, frame->span()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("V is -inf at kv head 1, token 7, channel 9")));
}

TEST_F(BlockCodecCudaTest, DecodesIntoAlignedRowsAlone) {
  const CodecParams params = PresetFor("kivi2", kShape);
  const ObjectHeader header = BlockHeaderFor(kShape, params, {});
  DeviceBuffer frame = OnDevice(std::vector<std::byte>(header.frame_bytes), stream());
  const TestTensor tensor(2, kBlockTokens, 64);
  CudaTensor device(tensor, stream());
  const auto codec = MakeBlockCodec(kShape, params, Device::kCuda);
  ASSERT_THAT(codec, IsOk());
  const ComputeContext cuda = {.device = Device::kCuda, .stream = stream()};
  const std::span<const std::byte> bytes = frame.span();
  MutableKvTensorView out = device.view();
  EXPECT_THAT((*codec)->Decode(header, bytes, {}, cuda, out), IsOk());
  out.v += 4;
  EXPECT_THAT((*codec)->Decode(header, bytes, {}, cuda, out),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("aligned to 16 bytes")));
}

}  // namespace
}  // namespace pkv
