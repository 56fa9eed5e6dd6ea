#include "worker/engine/compression_share.h"

#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"
#include "worker/engine/model_shapes.h"

namespace pkv {
namespace {

bool KeepsUp(absl::string_view shape, int num_sms) {
  const auto config = ModelShapeByName(shape);
  EXPECT_THAT(config, IsOk());
  return CompressionKeepsUp(*config, num_sms, 132);
}

TEST(CompressionShareTest, GoesByWhatAModelComputesForAChannelOfKAndV) {
  EXPECT_TRUE(KeepsUp("llama-3.1-8b", 4));
  EXPECT_TRUE(KeepsUp("qwen2.5-7b", 4));
  EXPECT_FALSE(KeepsUp("llama-3.2-1b", 4));
  EXPECT_TRUE(KeepsUp("llama-3.2-1b", 8));
  EXPECT_FALSE(KeepsUp("llama-3.1-8b", 2));
}

}  // namespace
}  // namespace pkv
