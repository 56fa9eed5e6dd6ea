// A long prompt of a random model, compressed on a few multiprocessors and on all.

#include "worker/engine/cuda/cuda_prefill.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "proto/block/payload_layout.h"
#include "tests/support/block_fixture.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/cuda_tensor.h"
#include "tests/support/status_matchers.h"
#include "worker/engine/compression_share.h"

namespace pkv {
namespace {

constexpr int kTokens = 4096 + 300, kBlocks = 32, kLayers = 5, kCapacity = 255;

// Few K and V for what it computes: four of 132 multiprocessors keep up.
ModelConfig SmallModel() {
  ModelConfig config;
  config.hidden_size = 1024;
  config.intermediate_size = 3072;
  config.num_layers = kLayers;
  config.num_qo_heads = 16;
  config.num_kv_heads = 1;
  config.head_dim = 64;
  config.vocab_size = 512;
  config.max_position_embeddings = 8192;
  config.rms_norm_eps = 1e-5;
  config.rope_theta = 10000;
  return config;
}

class CudaPrefillTest : public CudaTest {
 protected:
  // The pages of all layers.
  std::vector<std::byte> Compress(CudaPrefill& prefill, const CodecParams& params) {
    const KvShape shape = config_.kv_shape();
    const size_t page_bytes = PayloadLayout::OfBlock(shape, params.encoding).page_bytes;
    DeviceBuffer pages = OnDevice(std::vector<std::byte>(kLayers * kBlocks * page_bytes), stream());
    DeviceBuffer sinks = OnDevice(std::vector<uint16_t>(kLayers * 64 * 64 * 2), stream());
    DeviceBuffer bank_rows =
        OnDevice(std::vector<uint16_t>(size_t{kLayers} * 2 * kCapacity * 64), stream());
    EXPECT_EQ(cudaStreamSynchronize(static_cast<cudaStream_t>(stream())), cudaSuccess);
    std::vector<DeviceBank> banks(kLayers);
    std::vector<int32_t> tokens(kTokens);
    for (int i = 0; i < kTokens; ++i) tokens[i] = i * 7919 % config_.vocab_size;
    PrefillRequest request;
    request.tokens = tokens;
    request.num_blocks = kBlocks;
    request.target = [&](int layer) -> absl::StatusOr<PrefillTarget> {
      banks[layer] = {bank_rows.As<uint16_t>() + size_t(layer) * 2 * kCapacity * 64, kCapacity, 0,
                      0};
      PrefillTarget target;
      target.pages = pages.data() + layer * kBlocks * page_bytes;
      target.page_stride = static_cast<int64_t>(page_bytes);
      target.sinks = sinks.As<uint16_t>() + layer * 64 * 64 * 2;
      target.mine = true;
      target.bank = &banks[layer];
      return target;
    };
    request.on_compressed = [](int, const PrefillTarget&, const KvTensorView&, void*) {
      return absl::OkStatus();
    };
    EXPECT_THAT(prefill.Run(request), IsOk());
    std::vector<std::byte> got(kLayers * kBlocks * page_bytes);
    EXPECT_THAT(pages.CopyToHost(got), IsOk());
    return got;
  }

  const ModelConfig config_ = SmallModel();
};

TEST_F(CudaPrefillTest, CompressesTheSameOnAFewMultiprocessors) {
  ASSERT_TRUE(CompressionKeepsUp(config_, 4, 132));
  const auto model = CudaModel::MakeRandom("small", config_, WeightType::kBfloat16, 3);
  ASSERT_THAT(model, IsOk());
  const CodecParams params = *PresetByName("default", config_.kv_shape());
  std::vector<std::byte> on_all;
  for (const int compression_sms : {0, 4}) {
    const auto prefill = CudaPrefill::Make(
        model->get(), params,
        {.max_tokens = 4480, .chunk_tokens = 1000, .compression_sms = compression_sms});
    ASSERT_THAT(prefill, IsOk());
    const std::vector<std::byte> first = Compress(**prefill, params);
    for (int again = 0; again < 3; ++again) EXPECT_TRUE(Compress(**prefill, params) == first);
    if (compression_sms == 0) {
      on_all = first;
      continue;
    }
    // Products on fewer multiprocessors may round otherwise, and a few codes with them.
    int64_t num_equal = 0;
    for (size_t i = 0; i < first.size(); ++i) num_equal += first[i] == on_all[i] ? 1 : 0;
    RecordProperty("equal_bytes_permille", static_cast<int>(1000 * num_equal / first.size()));
    EXPECT_GE(num_equal, static_cast<int64_t>(first.size()) * 9 / 10);
  }
}

}  // namespace
}  // namespace pkv
