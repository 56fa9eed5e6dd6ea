#include "worker/engine/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace pkv {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Json = nlohmann::json;

absl::StatusOr<ModelConfig> Read(const Json& config) {
  const ScratchFolder folder;
  folder.Write("config.json", config.dump());
  return ReadModelConfig(folder.path());
}

Json ValidConfig() { return TinyModel().Config(); }

Json With(const char* field, const Json& value) {
  Json config = ValidConfig();
  config[field] = value;
  return config;
}

Json Without(const char* field) {
  Json config = ValidConfig();
  config.erase(field);
  return config;
}

TEST(ModelConfigTest, ReadsEveryFieldItUses) {
  Json config = With("rope_scaling", {{"rope_type", "llama3"},
                                      {"factor", 8.0},
                                      {"low_freq_factor", 1.0},
                                      {"high_freq_factor", 4.0},
                                      {"original_max_position_embeddings", 8192}});
  config.update({{"num_attention_heads", 4},
                 {"num_key_value_heads", 2},
                 {"attention_bias", true},
                 {"mlp_bias", true},
                 {"eos_token_id", {5, 7}}});
  const auto read = Read(config);
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(read->hidden_size, 128);
  EXPECT_EQ(read->intermediate_size, 192);
  EXPECT_EQ(read->num_qo_heads, 4);
  EXPECT_EQ(read->kv_shape(), (KvShape{2, 2, 64}));
  EXPECT_EQ(read->vocab_size, 64);
  EXPECT_EQ(read->max_position_embeddings, 1024);
  EXPECT_EQ(read->rms_norm_eps, 1e-5);
  EXPECT_EQ(read->rope_theta, 10000);
  EXPECT_TRUE(read->tie_word_embeddings);
  EXPECT_TRUE(read->attention_bias);
  EXPECT_TRUE(read->mlp_bias);
  EXPECT_EQ(read->bos_token_id, 1);
  EXPECT_THAT(read->eos_token_ids, ElementsAre(5, 7));
  EXPECT_EQ(read->rope_factor, 8);
  EXPECT_EQ(read->rope_low_freq_factor, 1);
  EXPECT_EQ(read->rope_high_freq_factor, 4);
  EXPECT_EQ(read->rope_original_max_position, 8192);
}

TEST(ModelConfigTest, TakesHuggingFaceDefaultsForWhatIsMissing) {
  const Json config = {{"model_type", "llama"},        {"hidden_size", 256},
                       {"intermediate_size", 512},     {"num_hidden_layers", 1},
                       {"num_attention_heads", 2},     {"vocab_size", 10},
                       {"max_position_embeddings", 64}};
  const auto read = Read(config);
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(read->num_kv_heads, 2);
  EXPECT_EQ(read->head_dim, 128);
  EXPECT_EQ(read->rope_theta, 10000);
  EXPECT_EQ(read->rms_norm_eps, 1e-6);
  EXPECT_FALSE(read->tie_word_embeddings);
  EXPECT_FALSE(read->attention_bias);
  EXPECT_EQ(read->bos_token_id, -1);
  EXPECT_THAT(read->eos_token_ids, IsEmpty());
  EXPECT_EQ(read->rope_factor, 0);
}

TEST(ModelConfigTest, ReadsRopeParametersOfLaterWriters) {
  const auto read =
      Read(With("rope_parameters", {{"rope_type", "default"}, {"rope_theta", 500000.0}}));
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(read->rope_theta, 500000);
  EXPECT_EQ(read->rope_factor, 0);
}

TEST(ModelConfigTest, AcceptsNullForWhatItWouldRefuse) {
  for (const char* field : {"quantization_config", "sliding_window", "rope_scaling"}) {
    EXPECT_THAT(Read(With(field, nullptr)), IsOk()) << field;
  }
  EXPECT_THAT(Read(With("rope_scaling", {{"type", "default"}})), IsOk());
}

TEST(ModelConfigTest, RefusesAModelItDoesNotRunAndNamesTheField) {
  struct {
    const char* field;
    Json value;
    const char* named;
  } const cases[] = {
      {"architectures", {"LlamaForSequenceClassification"}, "LlamaForSequenceClassification"},
      {"hidden_act", "gelu", "'gelu' is not 'silu'"},
      {"rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}}, "'yarn'"},
      {"rope_scaling", {{"type", "linear"}, {"factor", 4.0}}, "'linear'"},
      {"head_dim", 96, "96 is not in {64, 128}"},
      {"quantization_config", {{"quant_method", "awq"}}, "awq"},
      {"sliding_window", 4096, "4096"},
      {"partial_rotary_factor", 0.5, "0.5"},
      {"num_hidden_layers", 1025, "1025 is not at most 1024"},
  };
  for (const auto& refused : cases) {
    EXPECT_THAT(Read(With(refused.field, refused.value)),
                StatusIs(absl::StatusCode::kUnimplemented,
                         AllOf(HasSubstr(refused.field), HasSubstr(refused.named))));
  }
}

TEST(ModelConfigTest, RefusesAnotherModelType) {
  Json config = With("model_type", "mistral-moe");
  config["architectures"] = Json::array();
  EXPECT_THAT(Read(config), StatusIs(absl::StatusCode::kUnimplemented,
                                     HasSubstr("model_type 'mistral-moe' is not 'llama'")));
}

TEST(ModelConfigTest, AcceptsAnotherModelTypeOfTheSameArchitecture) {
  EXPECT_THAT(Read(With("model_type", "smollm")), IsOk());
}

TEST(ModelConfigTest, NamesAMissingField) {
  for (const char* field : {"hidden_size", "intermediate_size", "num_hidden_layers",
                            "num_attention_heads", "vocab_size", "max_position_embeddings"}) {
    EXPECT_THAT(Read(Without(field)), StatusIs(absl::StatusCode::kInvalidArgument,
                                               AllOf(HasSubstr(field), HasSubstr("missing"))));
  }
}

TEST(ModelConfigTest, RefusesValuesOfAnotherTypeOrRange) {
  struct {
    const char* field;
    Json value;
  } const cases[] = {
      {"hidden_size", "128"},
      {"hidden_size", 128.5},
      {"hidden_size", 0},
      {"hidden_size", -1},
      {"hidden_size", 18446744073709551615u},
      {"vocab_size", (1 << 24) + 1},
      {"rms_norm_eps", "small"},
      {"rms_norm_eps", 0},
      {"rope_theta", -1},
      {"tie_word_embeddings", 1},
      {"attention_bias", "no"},
      {"model_type", 3},
      {"architectures", "LlamaForCausalLM"},
      {"rope_scaling", "llama3"},
      {"bos_token_id", 64},
      {"bos_token_id", -1},
      {"eos_token_id", {2, 64}},
      {"eos_token_id", "</s>"},
  };
  for (const auto& wrong : cases) {
    EXPECT_THAT(Read(With(wrong.field, wrong.value)),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(wrong.field)))
        << wrong.value;
  }
}

TEST(ModelConfigTest, RefusesHeadCountsThatDoNotDivide) {
  EXPECT_THAT(Read(With("num_key_value_heads", 3)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("num_key_value_heads 3")));
  Json config = Without("head_dim");
  config["num_attention_heads"] = 3;
  config["num_key_value_heads"] = 1;
  EXPECT_THAT(Read(config), StatusIs(absl::StatusCode::kInvalidArgument,
                                     HasSubstr("128 is no multiple of num_attention_heads 3")));
}

TEST(ModelConfigTest, NeedsEveryFactorOfLlama3Rope) {
  const Json scaling = {{"rope_type", "llama3"},
                        {"factor", 8.0},
                        {"low_freq_factor", 1.0},
                        {"high_freq_factor", 4.0},
                        {"original_max_position_embeddings", 8192}};
  EXPECT_THAT(Read(With("rope_scaling", scaling)), IsOk());
  for (const char* field :
       {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}) {
    Json incomplete = scaling;
    incomplete.erase(field);
    EXPECT_THAT(Read(With("rope_scaling", incomplete)),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(field)));
  }
  Json equal = scaling;
  equal["low_freq_factor"] = 4.0;
  EXPECT_THAT(Read(With("rope_scaling", equal)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("low_freq_factor 4")));
}

TEST(ModelConfigTest, RefusesWhatIsNoJsonObject) {
  const ScratchFolder folder;
  EXPECT_THAT(ReadModelConfig(folder.path()), StatusIs(absl::StatusCode::kNotFound));
  for (const char* text : {"", "{", "{\"a\":1}}", "[]", "3", "\xff"}) {
    folder.Write("config.json", text);
    EXPECT_THAT(ReadModelConfig(folder.path()), StatusIs(absl::StatusCode::kInvalidArgument))
        << text;
  }
}

TEST(ModelConfigTest, RefusesAFileTooLargeToBeAConfig) {
  const ScratchFolder folder;
  const std::string text = ValidConfig().dump();
  folder.Write("config.json", text + std::string((1 << 20) - text.size(), ' '));
  EXPECT_THAT(ReadModelConfig(folder.path()), IsOk());
  folder.Write("config.json", text + std::string((1 << 20) - text.size() + 1, ' '));
  EXPECT_THAT(ReadModelConfig(folder.path()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("1048577 bytes")));
}

}  // namespace
}  // namespace pkv
