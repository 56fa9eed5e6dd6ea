// Layers of blocks decoded on a GPU have the bits of the CPU codec, rotated back on the CPU.
#include "pkv/kernels/layer_decoder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "pkv/kernels/rotation.h"
#include "proto/block/payload_layout.h"
#include "tests/support/block_fixture.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/cuda_tensor.h"
#include "tests/support/layer_fixture.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

struct DecoderCase {
  std::string preset;
  int head_dim;
  int num_heads;
  int num_blocks;
  int num_sinks = -1;  // of the preset
  int group = 0;       // of the preset
  int bits_k = 0, bits_v = 0;
  bool has_page_ids = true;
};

std::ostream& operator<<(std::ostream& os, const DecoderCase& c) {
  return os << c.preset << " K" << c.bits_k << "V" << c.bits_v << " group " << c.group
            << " head_dim " << c.head_dim << " heads " << c.num_heads << " blocks " << c.num_blocks
            << " sinks " << c.num_sinks << (c.has_page_ids ? "" : " in order");
}

constexpr uint64_t kSeed = 20261130;
constexpr int kCapacity = 77;
constexpr uint16_t kPoisonRow = 0xa5a5;

class LayerDecoderParityTest : public CudaTest, public testing::WithParamInterface<DecoderCase> {
 protected:
  LayerDecoderParityTest() {
    RecordProperty("seed", static_cast<int>(kSeed));
    const DecoderCase& c = GetParam();
    if (c.num_sinks >= 0) params_.num_sinks = c.num_sinks;
    if (c.bits_k > 0) SetBits(c.bits_k, c.bits_v, params_);
    if (c.group > 0) {
      params_.encoding.k_group_tokens = c.group;
      params_.encoding.v_group_channels = std::min(c.group, c.head_dim);
    }
  }

  ComputeContext cuda() const { return {.device = Device::kCuda, .stream = stream()}; }
  int num_tokens() const { return GetParam().num_blocks * kBlockTokens; }

  void Rotate(TestTensor& tensor) const {
    if (!params_.encoding.rotated) return;
    const int64_t rows = static_cast<int64_t>(tensor.k.size()) / shape_.head_dim;
    RotateFloat16Rows(tensor.k.data(), rows, shape_.head_dim, tensor.k.data());
    RotateFloat16Rows(tensor.v.data(), rows, shape_.head_dim, tensor.v.data());
  }

  // A sequence: the first two blocks as of a prompt, those behind as windows, which append.
  std::vector<EncodedBlock> EncodeOnCpu() const {
    const DecoderCase& c = GetParam();
    TestTensor tensor = HardLayer(kSeed, c.num_heads, num_tokens(), c.head_dim);
    Rotate(tensor);
    const int prompt = std::min(c.num_blocks, 2) * kBlockTokens;
    const KvTensorView kv = tensor.view();
    Codebook bank =
        *MinePatterns(kv.Tokens(params_.num_sinks, prompt - params_.num_sinks), params_, {});
    std::vector<EncodedBlock> blocks;
    for (int b = 0; b < c.num_blocks; ++b) {
      const Phase phase = b < 2 ? Phase::kPrefill : Phase::kDecode;
      blocks.push_back(
          EncodeBlock(shape_, params_, kv.Tokens(b * kBlockTokens, kBlockTokens), bank, phase, b));
      bank = blocks.back().codebook;
    }
    return blocks;
  }

  TestTensor DecodeOnCpu(const std::vector<EncodedBlock>& blocks) const {
    const int d = shape_.head_dim;
    const auto codec = MakeBlockCodec(shape_, params_, Device::kCpu);
    PKV_CHECK(codec.ok(), codec.status().ToString());
    TestTensor out(shape_.num_kv_heads, num_tokens(), d);
    TestTensor rows(shape_.num_kv_heads, kBlockTokens, d);
    const size_t count = size_t{kBlockTokens} * d;
    for (size_t b = 0; b < blocks.size(); ++b) {
      const absl::Status status = (*codec)->Decode(blocks[b].header, blocks[b].frame.span(),
                                                   blocks[b].codebook, {}, rows.view());
      PKV_CHECK(status.ok(), status.ToString());
      Rotate(rows);
      for (int head = 0; head < shape_.num_kv_heads; ++head) {
        const size_t at = (size_t(head) * blocks.size() + b) * count;
        std::copy_n(rows.k.begin() + head * count, count, out.k.begin() + at);
        std::copy_n(rows.v.begin() + head * count, count, out.v.begin() + at);
      }
    }
    return out;
  }

  // K [kv_head][capacity][head_dim], then V.
  std::vector<uint16_t> BankRows(const Codebook& bank) const {
    const size_t head_elements = size_t{kCapacity} * shape_.head_dim;
    std::vector<uint16_t> rows(2 * shape_.num_kv_heads * head_elements, 0xffff);
    for (int head = 0; head < bank.num_kv_heads(); ++head) {
      const auto at = rows.begin() + head * head_elements;
      std::copy(bank.k(head).begin(), bank.k(head).end(), at);
      std::copy(bank.v(head).begin(), bank.v(head).end(), at + rows.size() / 2);
    }
    return rows;
  }

  // Pages of a pool three times as large, in any order: one of every three is used.
  std::vector<int32_t> PageIds() const {
    std::vector<int32_t> ids(GetParam().num_blocks);
    TestRandom random(kSeed + 1);
    for (size_t b = 0; b < ids.size(); ++b) {
      ids[b] = static_cast<int32_t>(GetParam().has_page_ids ? 3 * b + random.Below(3) : b);
      if (GetParam().has_page_ids) std::swap(ids[b], ids[random.Below(b + 1)]);
    }
    return ids;
  }

  const KvShape shape_ = {1, GetParam().num_heads, GetParam().head_dim};
  CodecParams params_ = PresetFor(GetParam().preset, shape_);
};

TEST_P(LayerDecoderParityTest, WritesTheRowsOfTheCpuAndNothingElse) {
  const DecoderCase& c = GetParam();
  const std::vector<EncodedBlock> blocks = EncodeOnCpu();
  const TestTensor want = DecodeOnCpu(blocks);

  const int64_t page_bytes = PayloadLayout::OfBlock(shape_, params_.encoding).page_bytes;
  const int64_t page_stride = page_bytes + 256;
  const std::vector<int32_t> page_ids = PageIds();
  std::vector<std::byte> pages(3 * c.num_blocks * page_stride, kPoison);
  for (int b = 0; b < c.num_blocks; ++b) {
    std::copy_n(blocks[b].frame.data(), page_bytes, pages.begin() + page_ids[b] * page_stride);
  }
  const size_t sink_elements = size_t{2} * c.num_heads * params_.num_sinks * c.head_dim;
  const auto* sink_rows = reinterpret_cast<const uint16_t*>(blocks[0].frame.data() + page_bytes);
  const std::vector<uint16_t> sinks(sink_rows, sink_rows + sink_elements);
  const std::vector<uint16_t> bank_rows = BankRows(blocks.back().codebook);
  DeviceBuffer pages_device = OnDevice(pages, stream());
  DeviceBuffer ids_device = OnDevice(page_ids, stream());
  DeviceBuffer sinks_device = OnDevice(sinks, stream());
  DeviceBuffer bank_device = OnDevice(bank_rows, stream());
  // A gap behind each head.
  const int64_t head_stride = int64_t{num_tokens()} * c.head_dim + 24;
  std::vector<uint16_t> k(c.num_heads * head_stride, kPoisonRow), v = k;
  DeviceBuffer k_device = OnDevice(k, stream()), v_device = OnDevice(v, stream());

  const DeviceBank bank = {bank_device.As<uint16_t>(), kCapacity, 0, 0};
  LayerDecode layer;
  layer.pages = pages_device.data();
  layer.page_stride = page_stride;
  if (c.has_page_ids) layer.page_ids = ids_device.As<int32_t>();
  layer.num_blocks = c.num_blocks;
  layer.sinks = sinks_device.As<uint16_t>();
  layer.bank = &bank;
  layer.out = {k_device.As<uint16_t>(),
               v_device.As<uint16_t>(),
               c.num_heads,
               num_tokens(),
               c.head_dim,
               head_stride};
  const auto decoder = LayerDecoder::Make(shape_, params_, cuda());
  ASSERT_THAT(decoder, IsOk());
  ASSERT_THAT((*decoder)->Decode(layer, cuda()), IsOk());
  ASSERT_THAT(k_device.CopyToHost(std::as_writable_bytes(std::span(k))), IsOk());
  ASSERT_THAT(v_device.CopyToHost(std::as_writable_bytes(std::span(v))), IsOk());

  const int64_t head_elements = int64_t{num_tokens()} * c.head_dim;
  for (int64_t i = 0; i < c.num_heads * head_stride; ++i) {
    const int64_t head = i / head_stride, in_head = i % head_stride;
    const bool is_row = in_head < head_elements;
    const int64_t at = head * head_elements + in_head;
    ASSERT_EQ(k[i], is_row ? want.k[at] : kPoisonRow)
        << "K head " << head << " token " << in_head / c.head_dim << " channel "
        << in_head % c.head_dim;
    ASSERT_EQ(v[i], is_row ? want.v[at] : kPoisonRow)
        << "V head " << head << " token " << in_head / c.head_dim << " channel "
        << in_head % c.head_dim;
  }
}

std::vector<DecoderCase> Cases() {
  std::vector<DecoderCase> cases;
  for (const std::string& preset : PresetNames()) {
    for (const int head_dim : {64, 128}) {
      for (const int blocks : {1, 2, 3, 4, 5}) cases.push_back({preset, head_dim, 4, blocks});
      cases.push_back({preset, head_dim, 1, 3});
      cases.push_back({preset, head_dim, 3, 3, -1, 0, 0, 0, false});
      if (preset == "fp16") continue;
      for (const int sinks : {0, 4, 16, 64}) cases.push_back({preset, head_dim, 2, 2, sinks});
    }
  }
  for (const char* preset : {"kivi2", "pkv2", "default"}) {
    for (const int head_dim : {64, 128}) {
      for (const int group : {32, 64, 128}) {
        for (const int bits : {22, 24, 42, 44}) {
          cases.push_back({preset, head_dim, 4, 3, 16, group, bits / 10, bits % 10});
        }
      }
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Layers, LayerDecoderParityTest, testing::ValuesIn(Cases()));

}  // namespace
}  // namespace pkv
