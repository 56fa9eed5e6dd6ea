// A long prompt of a random model, compressed on a few multiprocessors and on all.

#include "worker/engine/cuda/cuda_prefill.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <numeric>
#include <vector>

#include "proto/base/log.h"
#include "proto/block/payload_layout.h"
#include "tests/support/block_fixture.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/cuda_tensor.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

constexpr int kLong = 4096 + 300, kShort = 1000, kLayers = 5, kCapacity = 255;

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
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    auto model = CudaModel::MakeRandom("small", config_, WeightType::kBfloat16, 3);
    ASSERT_THAT(model, IsOk());
    model_ = *std::move(model);
  }
  std::unique_ptr<CudaPrefill> Make(int compression_sms) {
    auto prefill = CudaPrefill::Make(
        model_.get(), params_,
        {.max_tokens = 4480, .chunk_tokens = 1000, .compression_sms = compression_sms});
    PKV_CHECK(prefill.ok(), prefill.status().ToString());
    int num_sms = 0;
    EXPECT_EQ(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, 0), cudaSuccess);
    EXPECT_EQ((*prefill)->compression_sms(), 32 * compression_sms <= num_sms ? compression_sms : 0);
    return *std::move(prefill);
  }

  // The pages of all layers of a prompt.
  std::vector<std::byte> Compress(CudaPrefill& prefill, int num_tokens) {
    const int num_blocks = num_tokens / kBlockTokens - 1;
    const size_t page_bytes =
        PayloadLayout::OfBlock(config_.kv_shape(), params_.encoding).page_bytes;
    DeviceBuffer pages =
        OnDevice(std::vector<std::byte>(kLayers * num_blocks * page_bytes), stream());
    DeviceBuffer sinks = OnDevice(std::vector<uint16_t>(kLayers * 64 * 64 * 2), stream());
    DeviceBuffer bank_rows =
        OnDevice(std::vector<uint16_t>(size_t{kLayers} * 2 * kCapacity * 64), stream());
    EXPECT_EQ(cudaStreamSynchronize(static_cast<cudaStream_t>(stream())), cudaSuccess);
    std::vector<DeviceBank> banks(kLayers);
    std::vector<int32_t> tokens(num_tokens);
    for (int i = 0; i < num_tokens; ++i) tokens[i] = i * 7919 % config_.vocab_size;
    PrefillRequest request;
    request.tokens = tokens;
    request.num_blocks = num_blocks;
    request.target = [&](int layer) -> absl::StatusOr<PrefillTarget> {
      banks[layer] = {bank_rows.As<uint16_t>() + size_t(layer) * 2 * kCapacity * 64, kCapacity, 0,
                      0};
      PrefillTarget target;
      target.pages = pages.data() + layer * num_blocks * page_bytes;
      target.page_stride = static_cast<int64_t>(page_bytes);
      target.sinks = sinks.As<uint16_t>() + layer * 64 * 64 * 2;
      target.mine = true;
      target.bank = &banks[layer];
      return target;
    };
    request.on_compressed = [](int, const PrefillTarget&, const KvTensorView&, void*) {
      return absl::OkStatus();
    };
    // First up to the last layer but one, as a prompt that is given up.
    int num_asked = 0;
    request.cancelled = [&] { return ++num_asked == kLayers; };
    EXPECT_THAT(prefill.Run(request), StatusIs(absl::StatusCode::kCancelled));
    request.cancelled = nullptr;
    EXPECT_THAT(prefill.Run(request), IsOk());
    std::vector<std::byte> got(kLayers * num_blocks * page_bytes);
    EXPECT_THAT(pages.CopyToHost(got), IsOk());
    return got;
  }

  const ModelConfig config_ = SmallModel();
  const CodecParams params_ = *PresetByName("default", config_.kv_shape());
  std::unique_ptr<CudaModel> model_;
};

TEST_F(CudaPrefillTest, CompressesOnAFewMultiprocessorsWhatItDoesOnAll) {
  const std::unique_ptr<CudaPrefill> on_all = Make(0), on_few = Make(4);
  const std::vector<std::byte> wanted = Compress(*on_all, kLong), got = Compress(*on_few, kLong);
  // Products on fewer multiprocessors may round otherwise, and a few codes with them.
  const int64_t num_equal =
      std::inner_product(got.begin(), got.end(), wanted.begin(), int64_t{0}, std::plus<>(),
                         [](std::byte a, std::byte b) { return a == b ? 1 : 0; });
  RecordProperty("equal_bytes_permille", static_cast<int>(1000 * num_equal / got.size()));
  EXPECT_GE(num_equal, static_cast<int64_t>(got.size()) * 9 / 10);
  // Long prompts and short ones, which are compressed on all, in turn.
  const std::vector<std::byte> of_short = Compress(*on_all, kShort);
  for (int again = 0; again < 3; ++again) {
    EXPECT_TRUE(Compress(*on_few, kShort) == of_short);
    EXPECT_TRUE(Compress(*on_few, kLong) == got);
    EXPECT_TRUE(Compress(*on_all, kLong) == wanted);
  }
}

TEST_F(CudaPrefillTest, RefusesAnOddNumberOfMultiprocessors) {
  for (const int compression_sms : {-2, 3}) {
    EXPECT_THAT(CudaPrefill::Make(model_.get(), params_,
                                  {.max_tokens = 128, .compression_sms = compression_sms}),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

}  // namespace
}  // namespace pkv
