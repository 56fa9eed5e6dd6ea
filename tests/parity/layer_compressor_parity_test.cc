// A layer compressed on a GPU: every preset and geometry given ids, and what the device chooses by
// itself.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/device/event.h"
#include "kernels/device/sm_partition.h"
#include "kernels/device/stream.h"
#include "kernels/pattern/pattern_backends.h"
#include "pkv/kernels/codec_params_text.h"
#include "proto/block/fragment_order.h"
#include "tests/support/layer_fixture.h"

namespace pkv {
namespace {

using LayerCompressorParityTest = LayerParityTest;

TEST_P(LayerCompressorParityTest, WritesTheFramesOfTheBlocksAndNothingElse) {
  ExpectFramesOfTheCpu();
}

std::vector<LayerCase> Cases() {
  std::vector<LayerCase> cases;
  for (const std::string& preset : PresetNames()) {
    for (const int head_dim : {64, 128}) {
      cases.push_back({preset, head_dim, 2, 3 * kBlockTokens + 17});
      cases.push_back({preset, head_dim, 1, kBlockTokens});
      cases.push_back({preset, head_dim, 8, 2 * kBlockTokens + 1});
      if (preset == "fp16") continue;
      for (const int sinks : {0, 4, 16, 64}) {
        cases.push_back({preset, head_dim, 2, 2 * kBlockTokens, sinks});
      }
    }
  }
  for (const char* preset : {"default", "default4", "kivi2", "pkv4"}) {
    for (const int head_dim : {64, 128}) {
      for (const int sinks : {-1, 0, 4, 16, 64}) {
        cases.push_back({preset, head_dim, 3, 3 * kBlockTokens + 5, sinks, true, false});
        cases.push_back({preset, head_dim, 3, 2 * kBlockTokens, sinks, true, true});
        cases.push_back({preset, head_dim, 2, 2 * kBlockTokens, sinks, false, true});
      }
    }
  }
  for (const char* preset : {"kivi2", "pkv2", "default"}) {
    for (const int head_dim : {64, 128}) {
      for (const int group : {32, 64, 128}) {
        for (const int bits : {22, 24, 42, 44}) {
          cases.push_back({preset, head_dim, 2, 2 * kBlockTokens, 16, false, false, group,
                           bits / 10, bits % 10});
        }
      }
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Layers, LayerCompressorParityTest, testing::ValuesIn(Cases()));

// A preset, or with another gate: NAME:GATE.
CodecParams GatedPreset(const std::string& text, const KvShape& shape) {
  const size_t colon = text.find(':');
  CodecParams params = PresetFor(text.substr(0, colon), shape);
  if (colon == std::string::npos) return params;
  const absl::Status status = SetCodecParam(params, "gate_v", text.substr(colon + 1));
  PKV_CHECK(status.ok(), status.ToString());
  return params;
}

// What the device chooses by itself: patterns, ids and gate.
class LayerPatternsTest : public CudaTest, public testing::WithParamInterface<std::string> {
 protected:
  static constexpr uint64_t kSeed = 20261123;
  static constexpr int kHeads = 2, kCapacity = 80;

  LayerPatternsTest() { RecordProperty("seed", static_cast<int>(kSeed)); }
  ComputeContext cuda() const { return {.device = Device::kCuda, .stream = stream()}; }

  TestTensor Rotated(const TestTensor& tensor) const {
    TestTensor out = tensor;
    if (!params_.encoding.rotated) return out;
    const int64_t rows = int64_t{kHeads} * tensor.num_tokens;
    RotateFloat16Rows(tensor.k.data(), rows, shape_.head_dim, out.k.data());
    RotateFloat16Rows(tensor.v.data(), rows, shape_.head_dim, out.v.data());
    return out;
  }
  Codebook Rotated(const Codebook& codebook) const {
    const int d = shape_.head_dim;
    if (!params_.encoding.rotated) return codebook;
    Codebook out(kHeads, d);
    std::vector<uint16_t> rows(size_t{kMaxPatterns} * d);
    for (int head = 0; head < kHeads; ++head) {
      const auto k = codebook.k(head), v = codebook.v(head);
      RotateFloat16Rows(k.data(), codebook.num_k(), d, rows.data());
      out.AppendK(head, std::span(rows).first(k.size()));
      RotateFloat16Rows(v.data(), codebook.num_v(), d, rows.data());
      out.AppendV(head, std::span(rows).first(v.size()));
    }
    return out;
  }
  // The choice of the device, near-ties apart: by distances of rows that are not rotated, and the
  // gate by those that are.
  PatternAssignment Choice(const KvTensorView& kv, const KvTensorView& rotated,
                           const Codebook& codebook, int first_token) const {
    CodecParams ungated = params_;
    ungated.gate_v = Gate::kNone;
    PatternAssignment ids =
        *AssignPatterns(kv, first_token, ungated, Rotated(codebook), Phase::kPrefill, {});
    for (int head = 0; head < kHeads; ++head) {
      GateHead(
          rotated.v_row(head, first_token), codebook.v(head), shape_.head_dim, params_,
          std::span(ids.v).subspan(size_t(head) * kBlockTokens, kBlockTokens).subspan(first_token));
    }
    return ids;
  }
  Codebook CodebookOf(const std::vector<uint16_t>& rows, int num_k, int num_v) const {
    const int d = shape_.head_dim;
    Codebook out(kHeads, d);
    for (int head = 0; head < kHeads; ++head) {
      const auto k = std::span(rows).subspan(size_t(head) * kCapacity * d);
      const auto v = std::span(rows).subspan(rows.size() / 2 + size_t(head) * kCapacity * d);
      out.AppendK(head, k.first(size_t(num_k) * d));
      out.AppendV(head, v.first(size_t(num_v) * d));
    }
    return out;
  }
  std::vector<uint16_t> RowsOf(const Codebook& codebook) const {
    const int d = shape_.head_dim;
    std::vector<uint16_t> rows(size_t{2} * kHeads * kCapacity * d, 0xffff);
    for (int head = 0; head < codebook.num_kv_heads(); ++head) {
      const size_t at = size_t(head) * kCapacity * d;
      std::copy(codebook.k(head).begin(), codebook.k(head).end(), rows.begin() + at);
      std::copy(codebook.v(head).begin(), codebook.v(head).end(),
                rows.begin() + rows.size() / 2 + at);
    }
    return rows;
  }

  const KvShape shape_ = {1, kHeads, 128};
  const CodecParams params_ = GatedPreset(GetParam(), shape_);
  const PayloadLayout layout_ = PayloadLayout::OfBlock(shape_, params_.encoding);
};

TEST_P(LayerPatternsTest, EncodesByItsOwnPatternsAsTheCpuByTheSame) {
  constexpr int kTokens = 5 * kBlockTokens + 40, kBlocks = kTokens / kBlockTokens;
  const TestTensor tensor = RandomTensor(kSeed, kHeads, kTokens, shape_.head_dim);
  const TestTensor rotated = Rotated(tensor);
  CudaTensor device(tensor, stream());
  const size_t sink_bytes = size_t{4} * kHeads * params_.num_sinks * shape_.head_dim;
  auto pages = DeviceBuffer::Make(kBlocks * layout_.page_bytes + sink_bytes, stream());
  auto bank_rows = DeviceBuffer::Make(RowsOf({}).size() * sizeof(uint16_t), stream());
  ASSERT_THAT(pages, IsOk());
  ASSERT_THAT(bank_rows, IsOk());
  DeviceBank bank = {bank_rows->As<uint16_t>(), kCapacity, 0, 0};
  LayerCompression layer;
  layer.kv = device.view();
  layer.bank = &bank;
  layer.pages = pages->data();
  layer.page_stride = layout_.page_bytes;
  layer.sinks = reinterpret_cast<uint16_t*>(pages->data() + kBlocks * layout_.page_bytes);
  const auto compressor = LayerCompressor::Make(shape_, params_, kTokens, cuda());
  ASSERT_THAT(compressor, IsOk());
  ASSERT_THAT((*compressor)->Compress(layer, cuda()), IsOk());
  EXPECT_THAT((*compressor)->CheckFinite(cuda()), IsOk());
  EXPECT_EQ(bank.num_k, params_.num_patterns_k);
  EXPECT_EQ(bank.num_v, params_.num_patterns_v);
  std::vector<std::byte> got(kBlocks * layout_.page_bytes);
  std::vector<uint16_t> rows(RowsOf({}).size());
  ASSERT_THAT(pages->CopyToHost(got), IsOk());
  ASSERT_THAT(bank_rows->CopyToHost(std::as_writable_bytes(std::span(rows))), IsOk());
  const Codebook codebook = CodebookOf(rows, bank.num_k, bank.num_v);
  const KvTensorView mined =
      KvTensorView(device.view()).Tokens(params_.num_sinks, kTokens - params_.num_sinks);
  const auto mined_codebook = MinePatterns(mined, params_, cuda());
  ASSERT_THAT(mined_codebook, IsOk());
  EXPECT_EQ(RowsOf(Rotated(*mined_codebook)), RowsOf(codebook));
  const auto codec = MakeBlockCodec(shape_, params_, Device::kCpu);
  int num_other_ids = 0;
  for (int b = 0; b < kBlocks; ++b) {
    const std::byte* page = got.data() + b * layout_.page_bytes;
    const KvTensorView kv = KvTensorView(rotated.view()).Tokens(b * kBlockTokens, kBlockTokens);
    const KvTensorView as_given =
        KvTensorView(tensor.view()).Tokens(b * kBlockTokens, kBlockTokens);
    const EncodedBlock nearest = EncodeBlock(shape_, params_, kv, codebook, Phase::kPrefill, b);
    PatternAssignment ids = Choice(as_given, kv, codebook, b == 0 ? params_.num_sinks : 0);
    for (int head = 0; head < kHeads; ++head) {
      const auto* k_ids =
          reinterpret_cast<const uint8_t*>(page + head * layout_.head_bytes) + layout_.k_ids;
      const auto* v_ids = k_ids + layout_.v_ids - layout_.k_ids;
      for (int t = 0; t < kBlockTokens; ++t) {
        uint8_t& k = ids.k[head * kBlockTokens + t];
        uint8_t& v = ids.v[head * kBlockTokens + t];
        num_other_ids += k != k_ids[RowPosition(t, kBlockTokens)] ? 1 : 0;
        num_other_ids += v != v_ids[ColumnPosition(t, kBlockTokens)] ? 1 : 0;
        k = k_ids[RowPosition(t, kBlockTokens)];
        v = v_ids[ColumnPosition(t, kBlockTokens)];
      }
    }
    AlignedBuffer want(nearest.frame.size());
    ASSERT_THAT((*codec)->Encode(nearest.header, kv, ids, codebook, {}, want.span()), IsOk());
    for (int64_t i = 0; i < layout_.page_bytes; ++i) {
      ASSERT_EQ(page[i], want.data()[i]) << "block " << b << " byte " << i;
    }
  }
  // Near-ties alone: the CPU, given the same patterns, chooses as the device does.
  RecordProperty("other_ids", num_other_ids);
  EXPECT_LT(num_other_ids, kHeads * kTokens / 500);
}

// On one stream and on the other in turn, as a prefill changes over.
TEST_P(LayerPatternsTest, WritesTheSameOnAFewMultiprocessors) {
  constexpr int kBlocks = 40, kTokens = kBlocks * kBlockTokens;
  const TestTensor tensor = RandomTensor(kSeed, kHeads, kTokens, shape_.head_dim);
  CudaTensor device(tensor, stream());
  const SmPartition partition = *SmPartition::Make(4);
  const Stream confined = *partition.MakeStream();
  const Event changed_over = *Event::Make();
  const auto compressor = LayerCompressor::Make(shape_, params_, kTokens, cuda());
  ASSERT_THAT(compressor, IsOk());
  const size_t page_bytes = kBlocks * layout_.page_bytes;
  std::vector<std::byte> got(page_bytes + size_t{4} * kHeads * params_.num_sinks * shape_.head_dim);
  std::vector<std::byte> want;
  DeviceBuffer bank_rows = OnDevice(RowsOf({}), stream());
  for (const bool is_confined : {false, true, false, true, true}) {
    DeviceBuffer pages = OnDevice(std::vector<std::byte>(got.size(), kPoison), stream());
    DeviceBank bank = {bank_rows.As<uint16_t>(), kCapacity, 0, 0};
    LayerCompression layer;
    layer.kv = device.view();
    layer.bank = &bank;
    layer.is_confined = is_confined;
    layer.pages = pages.data();
    layer.page_stride = layout_.page_bytes;
    layer.sinks = reinterpret_cast<uint16_t*>(pages.data() + page_bytes);
    void* on = is_confined ? confined.handle() : stream();
    ASSERT_THAT(changed_over.Record(stream()), IsOk());
    ASSERT_THAT(changed_over.MakeWait(on), IsOk());
    ASSERT_THAT((*compressor)->Compress(layer, {.device = Device::kCuda, .stream = on}), IsOk());
    ASSERT_THAT(changed_over.Record(on), IsOk());
    ASSERT_THAT(changed_over.MakeWait(stream()), IsOk());
    ASSERT_THAT(pages.CopyToHost(got), IsOk());
    if (want.empty()) want = got;
    EXPECT_TRUE(got == want) << is_confined;
  }
  EXPECT_THAT((*compressor)->CheckFinite(cuda()), IsOk());
}

TEST_P(LayerPatternsTest, FlushesManyWindowsToTheFramesOfTheCpu) {
  constexpr int kFlushes = 3;
  const TestTensor prompt = Rotated(RandomTensor(kSeed, kHeads, 300, shape_.head_dim));
  const Codebook table = *MinePatterns(prompt.view(), params_, {});
  const auto compressor = LayerCompressor::Make(shape_, params_, kBlockTokens, cuda());
  ASSERT_THAT(compressor, IsOk());
  const size_t appended_bytes = size_t{4} * kHeads * shape_.head_dim;
  std::vector<TestTensor> tensors;
  std::vector<CudaTensor> devices;
  std::vector<DeviceBuffer> bank_rows, pages, appended;
  std::vector<DeviceBank> banks(kFlushes);
  std::vector<WindowFlush> flushes(kFlushes);
  std::vector<EncodedBlock> want;
  for (int i = 0; i < kFlushes; ++i) {
    tensors.push_back(RandomTensor(kSeed + i, kHeads, kBlockTokens, shape_.head_dim));
    want.push_back(
        EncodeBlock(shape_, params_, Rotated(tensors[i]).view(), table, Phase::kDecode, i + 1));
    pages.push_back(OnDevice(std::vector<std::byte>(layout_.page_bytes + 128, kPoison), stream()));
    appended.push_back(OnDevice(std::vector<std::byte>(appended_bytes, kPoison), stream()));
    bank_rows.push_back(OnDevice(RowsOf(table), stream()));
    banks[i] = {bank_rows[i].As<uint16_t>(), kCapacity, table.num_k(), table.num_v()};
    devices.emplace_back(tensors[i], stream());
    ASSERT_THAT((*compressor)->CheckFinite(cuda()), IsOk());  // waits: the sources may go
    flushes[i].kv = devices[i].view();
    flushes[i].bank = &banks[i];
    flushes[i].page = pages[i].data();
    flushes[i].appended = appended[i].As<uint16_t>();
  }
  ASSERT_THAT((*compressor)->Flush(std::span(flushes), cuda()), IsOk());
  ASSERT_THAT((*compressor)->CheckFinite(cuda()), IsOk());
  for (int i = 0; i < kFlushes; ++i) {
    const PayloadLayout layout = PayloadLayout::Of(want[i].header);
    EXPECT_EQ(flushes[i].append_flags, want[i].header.flags & (kFlagAppendsK | kFlagAppendsV));
    EXPECT_EQ(banks[i].num_k, want[i].codebook.num_k());
    EXPECT_EQ(banks[i].num_v, want[i].codebook.num_v());
    std::vector<std::byte> got(layout.page_bytes + 128), rows(appended_bytes);
    ASSERT_THAT(pages[i].CopyToHost(got), IsOk());
    ASSERT_THAT(appended[i].CopyToHost(rows), IsOk());
    for (int64_t b = 0; b < layout.page_bytes + 128; ++b) {
      ASSERT_EQ(got[b], b < layout.page_bytes ? want[i].frame.data()[b] : kPoison)
          << "flush " << i << " byte " << b;
    }
    const int64_t num_appended = kHeads * layout.appended_head_bytes;
    for (int64_t b = 0; b < static_cast<int64_t>(appended_bytes); ++b) {
      ASSERT_EQ(rows[b], b < num_appended ? want[i].frame.data()[layout.appended + b] : kPoison)
          << "appended byte " << b;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Presets, LayerPatternsTest,
                         testing::Values("pkv2", "pkv2:none", "pkv4", "default", "default:exactmse",
                                         "default:none", "default4", "default4:exactmse"));

class LayerCompressorTest : public CudaTest {
 protected:
  static constexpr int kTokens = 2 * kBlockTokens + 9;
  const KvShape shape_ = {1, 2, 64};
  ComputeContext cuda() const { return {.device = Device::kCuda, .stream = stream()}; }

  // What CheckFinite() says when `value` stands at `index` of V.
  absl::Status CompressWith(absl::string_view preset, uint16_t value, size_t index) {
    TestTensor tensor = RandomTensor(5, shape_.num_kv_heads, kTokens, shape_.head_dim);
    tensor.v[index] = value;
    const CodecParams params = PresetFor(preset, shape_);
    auto compressor = LayerCompressor::Make(shape_, params, kTokens, cuda());
    PKV_CHECK(compressor.ok(), compressor.status().ToString());
    CudaTensor device(tensor, stream());
    const int64_t page_bytes = PayloadLayout::OfBlock(shape_, params.encoding).page_bytes;
    auto pages = DeviceBuffer::Make(2 * page_bytes + 65536, stream());
    auto bank_rows = DeviceBuffer::Make(size_t{4} * 2 * 64 * 64, stream());
    PKV_CHECK(pages.ok() && bank_rows.ok());
    DeviceBank bank = {bank_rows->As<uint16_t>(), 64, 0, 0};
    LayerCompression layer;
    layer.kv = device.view();
    layer.bank = &bank;
    layer.pages = pages->data();
    layer.page_stride = page_bytes;
    layer.sinks = reinterpret_cast<uint16_t*>(pages->data() + 2 * page_bytes);
    const absl::Status status = (*compressor)->Compress(layer, cuda());
    PKV_CHECK(status.ok(), status.ToString());
    const absl::Status first = (*compressor)->CheckFinite(cuda());
    PKV_CHECK((*compressor)->CheckFinite(cuda()).ok());  // asking clears it
    return first;
  }
};

TEST_F(LayerCompressorTest, FlagsNonFiniteInputOfBlocksAndOfTheTail) {
  for (const char* preset : {"fp16", "kivi2", "pkv4", "default"}) {
    EXPECT_THAT(CompressWith(preset, 0x7bff, 70), IsOk()) << preset;
    for (const uint16_t value : {0x7c00, 0xfc00, 0x7e00, 0xffff}) {
      for (const size_t index : {size_t{3}, size_t{kTokens - 1} * 64, size_t{kTokens} * 64 + 7}) {
        EXPECT_THAT(CompressWith(preset, value, index),
                    StatusIs(absl::StatusCode::kInvalidArgument))
            << preset << " " << value << " at " << index;
      }
    }
  }
}

}  // namespace
}  // namespace pkv
