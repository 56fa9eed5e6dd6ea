#ifndef PKV_TESTS_SUPPORT_LAYER_FIXTURE_H_
#define PKV_TESTS_SUPPORT_LAYER_FIXTURE_H_

// A layer compressed on a GPU, held to the CPU codec block by block: memcmp. Ids are those that the
// CPU assigned, so that near-ties of the device's own assignment play no part here.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <ostream>
#include <span>
#include <string>
#include <vector>

#include "pkv/kernels/block_slots.h"
#include "pkv/kernels/layer_compressor.h"
#include "pkv/kernels/rotation.h"
#include "proto/block/payload_layout.h"
#include "tests/support/block_fixture.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/cuda_tensor.h"
#include "tests/support/status_matchers.h"

namespace pkv {

struct LayerCase {
  std::string preset;
  int head_dim;
  int num_heads;
  int num_tokens;
  int num_sinks = -1;  // of the preset
  bool has_feedback = false;
  bool has_importance = false;
  int group = 0;  // of the preset
  int bits_k = 0, bits_v = 0;
  int num_patterns = 0;  // of the preset
};

inline std::ostream& operator<<(std::ostream& os, const LayerCase& c) {
  return os << c.preset << " K" << c.bits_k << "V" << c.bits_v << " group " << c.group
            << " head_dim " << c.head_dim << " heads " << c.num_heads << " tokens " << c.num_tokens
            << " sinks " << c.num_sinks << (c.has_feedback ? " feedback" : "")
            << (c.has_importance ? " importance" : "") << " patterns " << c.num_patterns;
}

// Heads like a model's, one constant, one of fp16's ends and zeros, and one whose residuals are
// zeros of both signs.
inline TestTensor HardLayer(uint64_t seed, int num_heads, int num_tokens, int head_dim) {
  TestTensor tensor = RandomTensor(seed, num_heads, num_tokens, head_dim);
  const uint16_t ends[] = {0x7bff, 0xfbff, 0x0000, 0x8000, 0x0001, 0x8001, 0x0400, 0x3c00};
  TestRandom random(seed);
  const size_t stride = size_t(num_tokens) * head_dim;
  for (auto* rows : {&tensor.k, &tensor.v}) {
    for (size_t i = 0; i < rows->size(); ++i) {
      const size_t head = i / stride;
      if (head == 1) (*rows)[i] = 0x3555;
      if (head == 2) (*rows)[i] = ends[random.Below(8)];
      if (head == 3) (*rows)[i] = random.Below(2) == 0 ? 0x0000 : 0x8000;
    }
  }
  return tensor;
}

inline constexpr std::byte kPoison{0xa5};

class LayerParityTest : public CudaTest, public testing::WithParamInterface<LayerCase> {
 protected:
  static constexpr uint64_t kSeed = 20261122;

  LayerParityTest() {
    RecordProperty("seed", static_cast<int>(kSeed));
    const LayerCase& c = GetParam();
    if (c.num_sinks >= 0) params_.num_sinks = c.num_sinks;
    if (c.num_patterns > 0) params_.num_patterns_k = params_.num_patterns_v = c.num_patterns;
    if (c.bits_k > 0) SetBits(c.bits_k, c.bits_v, params_);
    if (c.group > 0) {
      params_.encoding.k_group_tokens = c.group;
      params_.encoding.v_group_channels = std::min(c.group, c.head_dim);
    }
    if (c.has_feedback) {
      feedback_ = std::make_shared<KeyFeedback>(RandomKeyFeedback(kSeed, c.num_heads, c.head_dim));
    }
    if (c.has_importance) {
      TestRandom random(kSeed + 1);
      importance_.resize(size_t(c.num_heads) * c.num_tokens);
      for (float& x : importance_) x = static_cast<float>(random.Below(40));
    }
    if (params_.encoding.rotated) {
      RotateFloat16Rows(tensor_.k.data(), num_rows(), c.head_dim, rotated_.k.data());
      RotateFloat16Rows(tensor_.v.data(), num_rows(), c.head_dim, rotated_.v.data());
    }
  }

  int64_t num_rows() const { return int64_t{GetParam().num_heads} * GetParam().num_tokens; }
  int num_blocks() const { return GetParam().num_tokens / kBlockTokens; }
  ComputeContext cuda() const { return {.device = Device::kCuda, .stream = stream()}; }
  PayloadLayout layout() const { return PayloadLayout::OfBlock(shape_, params_.encoding); }

  std::vector<uint8_t> SlotsOf(int block) const {
    const LayerCase& c = GetParam();
    std::vector<uint8_t> slots;
    for (int head = 0; head < c.num_heads; ++head) {
      const auto importance =
          std::span(importance_)
              .subspan(size_t(head) * c.num_tokens + block * kBlockTokens, kBlockTokens);
      const auto of_head = ArrangeSlots(block == 0 ? params_.num_sinks : 0,
                                        params_.encoding.k_fine_tokens, importance);
      slots.insert(slots.end(), of_head.begin(), of_head.end());
    }
    return slots;
  }

  // The block as a CPU worker arranges and encodes it. Its ids go to `ids` by token.
  EncodedBlock EncodeOnCpu(int block, const Codebook& bank, TestTensor& ids) const {
    const LayerCase& c = GetParam();
    const KvTensorView kv =
        KvTensorView(rotated_.view()).Tokens(block * kBlockTokens, kBlockTokens);
    TestTensor arranged(c.num_heads, kBlockTokens, c.head_dim);
    std::vector<uint8_t> slots(size_t(c.num_heads) * kBlockTokens);
    for (size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<uint8_t>(i % kBlockTokens);
    if (c.has_importance && params_.encoding.k_fine_tokens > 0) slots = SlotsOf(block);
    GatherSlots(kv, slots, arranged.view());
    EncodedBlock encoded =
        EncodeBlock(shape_, params_, arranged.view(), bank, Phase::kPrefill, block, {}, feedback_);
    for (size_t i = 0; i < encoded.assignment.k.size(); ++i) {
      const size_t at = i / kBlockTokens * c.num_tokens + block * kBlockTokens + slots[i];
      ids.k[at] = encoded.assignment.k[i];
      ids.v[at] = encoded.assignment.v[i];
    }
    return encoded;
  }

  // The bank on the device, with room for more.
  std::vector<uint16_t> BankOf(const Codebook& codebook, int capacity) const {
    const LayerCase& c = GetParam();
    std::vector<uint16_t> bank(size_t{2} * c.num_heads * capacity * c.head_dim, 0xffff);
    for (int head = 0; head < codebook.num_kv_heads(); ++head) {
      const size_t at = size_t(head) * capacity * c.head_dim;
      std::copy(codebook.k(head).begin(), codebook.k(head).end(), bank.begin() + at);
      std::copy(codebook.v(head).begin(), codebook.v(head).end(),
                bank.begin() + bank.size() / 2 + at);
    }
    return bank;
  }

  // Compresses the layer, pages in reverse order with poison between them, and compares all of it.
  void ExpectFramesOfTheCpu() {
    const LayerCase& c = GetParam();
    const int capacity = std::max(77, c.num_patterns);
    const int first = std::min(params_.num_sinks, c.num_tokens);
    const Codebook bank = *MinePatterns(
        KvTensorView(rotated_.view()).Tokens(first, c.num_tokens - first), params_, {});
    TestTensor ids(c.num_heads, c.num_tokens, 1);
    std::vector<EncodedBlock> want;
    for (int b = 0; b < num_blocks(); ++b) want.push_back(EncodeOnCpu(b, bank, ids));

    // Pages in reverse order, with a gap behind each.
    const int64_t page_bytes = layout().page_bytes, stride = page_bytes + 256;
    std::vector<int32_t> page_ids;
    for (int b = num_blocks() - 1; b >= 0; --b) page_ids.push_back(b);
    const size_t sink_bytes = size_t{4} * c.num_heads * params_.num_sinks * c.head_dim;
    std::vector<std::byte> pages(num_blocks() * stride, kPoison), sinks(sink_bytes + 128, kPoison);
    const std::vector<uint16_t> bank_rows = BankOf(bank, capacity);
    const std::vector<uint8_t> k_ids(ids.k.begin(), ids.k.end()), v_ids(ids.v.begin(), ids.v.end());
    CudaTensor device(tensor_, stream());
    DeviceBuffer pages_device = OnDevice(pages, stream()), sinks_device = OnDevice(sinks, stream());
    DeviceBuffer page_ids_device = OnDevice(page_ids, stream());
    DeviceBuffer bank_device = OnDevice(bank_rows, stream());
    DeviceBuffer k_ids_device = OnDevice(k_ids, stream()), v_ids_device = OnDevice(v_ids, stream());
    DeviceBuffer importance_device = OnDevice(importance_, stream());
    DeviceBuffer order, weights, scales;
    if (feedback_ != nullptr) {
      order = OnDevice(feedback_->order, stream());
      weights = OnDevice(feedback_->weights, stream());
      scales = OnDevice(feedback_->scales, stream());
    }

    DeviceBank device_bank = {bank_device.As<uint16_t>(), capacity, bank.num_k(), bank.num_v()};
    LayerCompression layer;
    layer.kv = device.view();
    layer.mine = false;
    layer.bank = &device_bank;
    layer.ids = {k_ids_device.As<uint8_t>(), v_ids_device.As<uint8_t>(), c.num_tokens};
    layer.feedback = {order.As<uint8_t>(), weights.As<int8_t>(), scales.As<float>()};
    layer.importance = importance_device.As<float>();
    layer.pages = pages_device.data();
    layer.page_stride = stride;
    layer.page_ids = page_ids_device.As<int32_t>();
    layer.sinks = sinks_device.As<uint16_t>();
    const auto compressor = LayerCompressor::Make(shape_, params_, c.num_tokens, cuda());
    ASSERT_THAT(compressor, IsOk());
    ASSERT_THAT((*compressor)->Compress(layer, cuda()), IsOk());
    EXPECT_THAT((*compressor)->CheckFinite(cuda()), IsOk());
    ASSERT_THAT(pages_device.CopyToHost(pages), IsOk());
    ASSERT_THAT(sinks_device.CopyToHost(sinks), IsOk());

    for (int b = 0; b < num_blocks(); ++b) {
      const std::byte* got = pages.data() + page_ids[b] * stride;
      for (int64_t i = 0; i < stride; ++i) {
        ASSERT_EQ(got[i], i < page_bytes ? want[b].frame.data()[i] : kPoison)
            << "block " << b << " byte " << i << " of head " << i / layout().head_bytes;
      }
    }
    for (size_t i = 0; i < sinks.size(); ++i) {
      ASSERT_EQ(sinks[i], i < sink_bytes ? want[0].frame.data()[page_bytes + i] : kPoison)
          << "sink byte " << i;
    }
  }

  const KvShape shape_ = {1, GetParam().num_heads, GetParam().head_dim};
  CodecParams params_ = PresetFor(GetParam().preset, shape_);
  TestTensor tensor_ =
      HardLayer(kSeed, GetParam().num_heads, GetParam().num_tokens, GetParam().head_dim);
  TestTensor rotated_ = tensor_;
  std::shared_ptr<const KeyFeedback> feedback_;
  std::vector<float> importance_;
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_LAYER_FIXTURE_H_
