#include <gtest/gtest.h>

#include <bit>
#include <vector>

#include "kernels/codec/codec_math.h"
#include "kernels/codec/head_frame.h"
#include "pkv/kernels/block_codec.h"
#include "tests/support/block_fixture.h"

namespace pkv {
namespace {

// One element, straight from BLOCK_FORMAT.md.
struct ElementReader {
  const EncodedBlock& block;
  int head;

  float K(int t, int j) const {
    const PayloadLayout layout = PayloadLayout::Of(block.header);
    const HeadFrame<const std::byte> frame(block.header, layout, block.frame.data(), head);
    const int d = layout.head_dim, bits = layout.encoding.bits_k;
    if (t < frame.num_rows) return Float16ToFloat(frame.k_rows[t * d + j]);
    const CodePosition at = LocateCode(t, j, d, bits);
    const int params_at = t / layout.encoding.k_group_tokens * d + ColumnPosition(j, d);
    const uint32_t code = (frame.k_codes[at.word_index] >> at.shift) & ((1u << bits) - 1);
    const float value =
        DequantizeOne(static_cast<float>(code), Float16ToFloat(frame.k_scales[params_at]),
                      Float16ToFloat(frame.k_zeros[params_at]));
    if (frame.k_ids == nullptr) return value;
    return WithPattern(value, frame.k_ids[RowPosition(t, kBlockTokens)], block.codebook.k(head), j);
  }

  float V(int t, int j) const {
    const PayloadLayout layout = PayloadLayout::Of(block.header);
    const HeadFrame<const std::byte> frame(block.header, layout, block.frame.data(), head);
    const int d = layout.head_dim, bits = layout.encoding.bits_v;
    if (t < frame.num_rows) return Float16ToFloat(frame.v_rows[t * d + j]);
    const CodePosition at = LocateCode(j, t, kBlockTokens, bits);
    const int first = j / layout.encoding.v_group_channels * kBlockTokens;
    const uint32_t code = (frame.v_codes[at.word_index] >> at.shift) & ((1u << bits) - 1);
    const float value =
        DequantizeOne(static_cast<float>(code),
                      Float16ToFloat(frame.v_scales[first + RowPosition(t, kBlockTokens)]),
                      Float16ToFloat(frame.v_zeros[first + ColumnPosition(t, kBlockTokens)]));
    if (frame.v_ids == nullptr) return value;
    return WithPattern(value, frame.v_ids[ColumnPosition(t, kBlockTokens)], block.codebook.v(head),
                       j);
  }

  float WithPattern(float value, int id, std::span<const uint16_t> patterns, int j) const {
    if (id == kRawPatternId) return value;
    const size_t head_dim = block.header.head_dim;
    return value + Float16ToFloat(patterns[static_cast<size_t>(id) * head_dim + j]);
  }
};

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
    const ElementReader reader = {block, head};
    for (int t = 0; t < kBlockTokens; ++t) {
      for (int j = 0; j < head_dim; ++j) {
        const size_t at = static_cast<size_t>(t) * head_dim + j;
        ASSERT_EQ(std::bit_cast<uint32_t>(k[at]), std::bit_cast<uint32_t>(reader.K(t, j)))
            << "token " << t << " channel " << j;
        ASSERT_EQ(std::bit_cast<uint32_t>(v[at]), std::bit_cast<uint32_t>(reader.V(t, j)))
            << "token " << t << " channel " << j;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Encodings, DequantizeTileTest,
                         testing::Combine(testing::Values("fp16", "kivi2", "kivi4", "pkv2", "pkv4",
                                                          "default"),
                                          testing::Values(64, 128), testing::Values(32, 128)));

}  // namespace
}  // namespace pkv
