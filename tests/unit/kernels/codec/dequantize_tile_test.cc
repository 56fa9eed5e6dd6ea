#include <gtest/gtest.h>

#include <bit>
#include <vector>

#include "pkv/kernels/block_codec.h"
#include "tests/support/block_fixture.h"
#include "tests/support/coded_head.h"

namespace pkv {
namespace {

class DequantizeTileTest : public testing::TestWithParam<std::tuple<const char*, int, int>> {};

TEST_P(DequantizeTileTest, EqualsTheFormatElementByElement) {
  const auto [preset, head_dim, group] = GetParam();
  const KvShape shape = {1, 2, head_dim};
  CodecParams params = PresetFor(preset, shape);
  if (!params.encoding.is_fp16()) {
    params.encoding.k_group_tokens = group;
    params.encoding.v_group_channels = std::min(group, head_dim);
  }
  const TestTensor prompt = RandomTensor(11, 2, 2 * kBlockTokens, head_dim);
  const Codebook table = *MinePatterns(prompt.view(), params, {});
  const auto block =
      EncodeBlock(shape, params, prompt.view().Tokens(0, kBlockTokens), table, Phase::kPrefill, 0);
  std::vector<float> k(static_cast<size_t>(kBlockTokens) * head_dim), v(k.size());
  for (int head = 0; head < 2; ++head) {
    DequantizeKTile(block.header, block.frame.span(), block.codebook, head, k.data());
    DequantizeVTile(block.header, block.frame.span(), block.codebook, head, v.data());
    const CodedHead reader(block.header, block.frame.span(), &block.codebook, head);
    const auto value = [](const CodedValue& coded) {
      return coded.is_exact ? coded.zero : coded.Residual() + coded.pattern;
    };
    for (int t = 0; t < kBlockTokens; ++t) {
      for (int j = 0; j < head_dim; ++j) {
        const size_t at = static_cast<size_t>(t) * head_dim + j;
        ASSERT_EQ(std::bit_cast<uint32_t>(k[at]), std::bit_cast<uint32_t>(value(reader.K(t, j))))
            << "token " << t << " channel " << j;
        ASSERT_EQ(std::bit_cast<uint32_t>(v[at]), std::bit_cast<uint32_t>(value(reader.V(t, j))))
            << "token " << t << " channel " << j;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Encodings, DequantizeTileTest,
                         testing::Combine(testing::Values("fp16", "kivi2", "kivi4", "pkv2", "pkv4",
                                                          "default", "default4"),
                                          testing::Values(64, 128), testing::Values(32, 128)));

}  // namespace
}  // namespace pkv
