#include "worker/engine/compression_share.h"

#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"
#include "worker/engine/model_shapes.h"

namespace pkv {
namespace {

bool KeepsUp(absl::string_view shape, int num_sms) {
  const auto config = ModelShapeByName(shape);
  EXPECT_THAT(config, IsOk());
  const CodecParams params = *PresetByName("default", config->kv_shape());
  return CompressionKeepsUp(*config, params, num_sms, 132);
}

TEST(CompressionShareTest, GoesByWhatAModelComputesForAChannelOfKAndV) {
  EXPECT_TRUE(KeepsUp("llama-3.1-8b", 4));
  EXPECT_TRUE(KeepsUp("qwen2.5-7b", 4));
  EXPECT_FALSE(KeepsUp("llama-3.2-1b", 4));
  EXPECT_TRUE(KeepsUp("llama-3.2-1b", 8));
  EXPECT_FALSE(KeepsUp("llama-3.1-8b", 2));
}

TEST(CompressionShareTest, LeavesWhatIsEncodedSlowlyToAll) {
  const ModelConfig config = *ModelShapeByName("llama-3.1-8b");
  for (const std::string& preset : PresetNames()) {
    const CodecParams params = *PresetByName(preset, config.kv_shape());
    EXPECT_TRUE(CompressionKeepsUp(config, params, 4, 132)) << preset;
  }
  CodecParams params = *PresetByName("default", config.kv_shape());
  params.gate_v = Gate::kExactMse;
  EXPECT_FALSE(CompressionKeepsUp(config, params, 4, 132));
  params = *PresetByName("default", config.kv_shape());
  params.encoding.v_group_channels = 64;
  EXPECT_FALSE(CompressionKeepsUp(config, params, 4, 132));
  params.encoding.v_group_channels = 128;
  params.encoding.k_group_tokens = 64;
  EXPECT_FALSE(CompressionKeepsUp(config, params, 4, 132));
}

}  // namespace
}  // namespace pkv
