// Rotation and slots on a GPU have the bits of the CPU's.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/codec/layer_prepare.h"
#include "pkv/block/kv_shape.h"
#include "pkv/kernels/block_slots.h"
#include "pkv/kernels/rotation.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/cuda_tensor.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

constexpr uint64_t kSeed = 20261124;

class LayerPrepareParityTest : public CudaTest {
 protected:
  LayerPrepareParityTest() { RecordProperty("seed", static_cast<int>(kSeed)); }
  cudaStream_t cuda_stream() const { return static_cast<cudaStream_t>(stream()); }
};

TEST_F(LayerPrepareParityTest, RotatesToEqualBits) {
  TestRandom random(kSeed);
  for (const int head_dim : {64, 128}) {
    for (const int num_tokens : {1, 3, 130, 1001}) {
      TestTensor tensor = RandomTensor(kSeed, 3, num_tokens, head_dim);
      // Rows of the largest values saturate; any finite bits elsewhere.
      for (int i = 0; i < head_dim; ++i) tensor.k[i] = i % 3 == 0 ? 0xfbff : 0x7bff;
      for (uint16_t& x : tensor.v) x = static_cast<uint16_t>(random.Below(0x7c00));
      TestTensor want = tensor, got(3, num_tokens, head_dim);
      RotateFloat16Rows(tensor.k.data(), int64_t{3} * num_tokens, head_dim, want.k.data());
      RotateFloat16Rows(tensor.v.data(), int64_t{3} * num_tokens, head_dim, want.v.data());
      CudaTensor in(tensor, stream()), out(got, stream());
      DeviceBuffer flag = OnDevice(std::vector<uint32_t>{0}, stream());
      ASSERT_EQ(LaunchRotateRows(in.view(), out.view(), flag.As<uint32_t>(), cuda_stream()),
                cudaSuccess);
      out.CopyToHost(got);
      EXPECT_EQ(got.k, want.k) << head_dim << " x " << num_tokens;
      EXPECT_EQ(got.v, want.v) << head_dim << " x " << num_tokens;
    }
  }
}

TEST_F(LayerPrepareParityTest, ArrangesSlotsAsTheCpuDoes) {
  constexpr int kHeads = 3, kBlocks = 2, kStride = kBlocks * kBlockTokens + 5;
  TestRandom random(kSeed);
  for (const int num_sinks : {0, 4, 16, 64}) {
    std::vector<float> importance(size_t{kHeads} * kStride);
    for (float& x : importance) x = static_cast<float>(random.Below(30) - 10);
    // NaN counts as -infinity.
    std::vector<float> given = importance;
    for (size_t i = 0; i < given.size(); i += 3) {
      if (i % 2 == 0) given[i] = NAN;
      importance[i] = -INFINITY;
      if (i % 2 != 0) given[i] = -INFINITY;
    }
    std::vector<uint8_t> got(size_t{kBlocks} * kHeads * kBlockTokens, 0xee);
    DeviceBuffer importance_device = OnDevice(given, stream());
    DeviceBuffer slots_device = OnDevice(got, stream());
    SlotKernelArgs args;
    args.importance = importance_device.As<float>();
    args.head_stride = kStride;
    args.num_blocks = kBlocks;
    args.num_kv_heads = kHeads;
    args.num_sinks = num_sinks;
    args.num_fine = kFineTokens;
    args.slots = slots_device.As<uint8_t>();
    ASSERT_EQ(LaunchArrangeSlots(args, cuda_stream()), cudaSuccess);
    ASSERT_THAT(slots_device.CopyToHost(std::as_writable_bytes(std::span(got))), IsOk());
    for (int block = 0; block < kBlocks; ++block) {
      for (int head = 0; head < kHeads; ++head) {
        const auto of_block =
            std::span(importance)
                .subspan(size_t(head) * kStride + size_t(block) * kBlockTokens, kBlockTokens);
        const auto want = ArrangeSlots(block == 0 ? num_sinks : 0, kFineTokens, of_block);
        const auto at = got.begin() + (block * kHeads + head) * kBlockTokens;
        EXPECT_EQ(std::vector<uint8_t>(at, at + kBlockTokens), want)
            << "sinks " << num_sinks << " block " << block << " head " << head;
      }
    }
  }
}

}  // namespace
}  // namespace pkv
