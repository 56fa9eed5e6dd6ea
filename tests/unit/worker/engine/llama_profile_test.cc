#include "worker/engine/llama_profile.h"

#include <gtest/gtest.h>

#include "nlohmann/json.hpp"
#include "proto/base/log.h"
#include "tests/support/tiny_model.h"

namespace pkv {
namespace {

ModelProfile Profile(const TinyModel& tiny) {
  const ScratchFolder folder;
  tiny.Write(folder, 1);
  const auto config = ReadModelConfig(folder.path());
  const auto files = WeightFiles::Open(folder.path());
  PKV_CHECK(config.ok() && files.ok());
  return ProfileOf(*config, *files);
}

TEST(ProfileOfTest, NamesShapeRopeWeightsAndWhatElseChangesKAndV) {
  TinyModel tiny;
  const ModelProfile profile = Profile(tiny);
  EXPECT_EQ(profile.shape, (KvShape{2, 1, 64}));
  EXPECT_EQ(profile.rope_theta, 10000);
  const Digest digest = profile.ComputeDigest();
  EXPECT_EQ(Profile(tiny).ComputeDigest(), digest);
  tiny.extra_config = {{"rms_norm_eps", 2e-5}};
  EXPECT_NE(Profile(tiny).ComputeDigest(), digest);
  tiny.extra_config = {{"rope_scaling",
                        {{"rope_type", "llama3"},
                         {"factor", 8.0},
                         {"low_freq_factor", 1.0},
                         {"high_freq_factor", 4.0},
                         {"original_max_position_embeddings", 128}}}};
  EXPECT_NE(Profile(tiny).ComputeDigest(), digest);
  tiny.extra_config = nlohmann::json::object();
  for (const char* bias : {"attention_bias", "mlp_bias"}) {
    TinyModel biased;
    biased.attention_bias = biased.mlp_bias = true;
    const Digest with_bias = Profile(biased).ComputeDigest();
    biased.extra_config = {{bias, false}};
    EXPECT_NE(Profile(biased).ComputeDigest(), with_bias) << bias;
  }
  tiny.rope_theta = 20000;
  EXPECT_NE(Profile(tiny).ComputeDigest(), digest);
  tiny.rope_theta = 10000;
  tiny.seed = 2;
  EXPECT_NE(Profile(tiny).ComputeDigest(), digest);
}

}  // namespace
}  // namespace pkv
