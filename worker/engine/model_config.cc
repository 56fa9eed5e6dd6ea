#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "proto/base/status_macros.h"
#include "worker/engine/model_config.h"

namespace pkv {
namespace {

using Json = nlohmann::json;

// Far above every model of the family; keeps the product of any two of them inside 64 bits.
constexpr int64_t kMaxDimension = int64_t{1} << 24;
// A config.json is a few kilobytes; one beyond this is something else.
constexpr uintmax_t kMaxConfigBytes = 1 << 20;

bool IsGiven(const Json& object, const char* field) {
  const auto it = object.find(field);
  return it != object.end() && !it->is_null();
}

absl::Status WrongType(const char* field, const Json& value, const char* wanted) {
  return absl::InvalidArgumentError(
      absl::StrCat("config.json: ", field, " is ", value.dump().substr(0, 100), ", not ", wanted));
}

absl::Status Unsupported(const char* field, const Json& value, absl::string_view limit) {
  return absl::UnimplementedError(
      absl::StrCat("config.json: ", field, " ", value.dump().substr(0, 100), " is not ", limit));
}

// Reads fields of one JSON object. A field that is absent or null is missing.
class FieldReader {
 public:
  explicit FieldReader(const Json& object) : object_(object) {}

  // Missing leaves `out` as it is, unless `required`.
  absl::Status Dimension(const char* field, bool required, int& out) const {
    PKV_ASSIGN_OR_RETURN(const bool given, Given(field, required));
    if (!given) return absl::OkStatus();
    const Json& value = object_.at(field);
    if (!value.is_number_integer()) return WrongType(field, value, "an integer");
    // Only the unsigned form may exceed int64.
    const bool too_large = value.is_number_unsigned() && value.get<uint64_t>() > kMaxDimension;
    if (too_large || value.get<int64_t>() < 1 || value.get<int64_t>() > kMaxDimension) {
      return absl::InvalidArgumentError(absl::StrCat("config.json: ", field, " ", value.dump(),
                                                     " is not in [1, ", kMaxDimension, "]"));
    }
    out = value.get<int>();
    return absl::OkStatus();
  }

  absl::Status Positive(const char* field, bool required, double& out) const {
    PKV_ASSIGN_OR_RETURN(const bool given, Given(field, required));
    if (!given) return absl::OkStatus();
    const Json& value = object_.at(field);
    if (!value.is_number()) return WrongType(field, value, "a number");
    if (!(value.get<double>() > 0)) return WrongType(field, value, "positive");
    out = value.get<double>();
    return absl::OkStatus();
  }

  absl::Status Boolean(const char* field, bool& out) const {
    if (!IsGiven(object_, field)) return absl::OkStatus();
    const Json& value = object_.at(field);
    if (!value.is_boolean()) return WrongType(field, value, "true or false");
    out = value.get<bool>();
    return absl::OkStatus();
  }

  // Missing is empty.
  absl::StatusOr<std::string> Text(const char* field) const {
    if (!IsGiven(object_, field)) return std::string();
    const Json& value = object_.at(field);
    if (!value.is_string()) return WrongType(field, value, "a string");
    return value.get<std::string>();
  }

 private:
  absl::StatusOr<bool> Given(const char* field, bool required) const {
    const bool given = IsGiven(object_, field);
    if (!given && required) {
      return absl::InvalidArgumentError(absl::StrCat("config.json: ", field, " is missing"));
    }
    return given;
  }

  const Json& object_;
};

// Features that change the arithmetic and that the executor does not have.
absl::Status CheckFamily(const Json& object) {
  const FieldReader fields(object);
  PKV_ASSIGN_OR_RETURN(const std::string model_type, fields.Text("model_type"));
  bool named_llama = false;
  if (IsGiven(object, "architectures")) {
    const Json& architectures = object.at("architectures");
    if (!architectures.is_array()) return WrongType("architectures", architectures, "a list");
    for (const Json& name : architectures) named_llama |= name == "LlamaForCausalLM";
    if (!named_llama && !architectures.empty()) {
      return Unsupported("architectures", architectures, "[\"LlamaForCausalLM\"]");
    }
  }
  if (model_type != "llama" && !named_llama) {
    return absl::UnimplementedError(
        absl::StrCat("config.json: model_type '", model_type, "' is not 'llama'"));
  }
  PKV_ASSIGN_OR_RETURN(const std::string activation, fields.Text("hidden_act"));
  if (!activation.empty() && activation != "silu") {
    return absl::UnimplementedError(
        absl::StrCat("config.json: hidden_act '", activation, "' is not 'silu'"));
  }
  for (const char* field : {"quantization_config", "sliding_window"}) {
    if (IsGiven(object, field)) return Unsupported(field, object.at(field), "null");
  }
  double rotary_share = 1;
  PKV_RETURN_IF_ERROR(fields.Positive("partial_rotary_factor", false, rotary_share));
  if (rotary_share != 1) {
    return Unsupported("partial_rotary_factor", object.at("partial_rotary_factor"), "1");
  }
  return absl::OkStatus();
}

absl::Status ReadDimensions(const Json& object, ModelConfig& config) {
  const FieldReader fields(object);
  PKV_RETURN_IF_ERROR(fields.Dimension("hidden_size", true, config.hidden_size));
  PKV_RETURN_IF_ERROR(fields.Dimension("intermediate_size", true, config.intermediate_size));
  PKV_RETURN_IF_ERROR(fields.Dimension("num_hidden_layers", true, config.num_layers));
  PKV_RETURN_IF_ERROR(fields.Dimension("num_attention_heads", true, config.num_qo_heads));
  PKV_RETURN_IF_ERROR(fields.Dimension("vocab_size", true, config.vocab_size));
  PKV_RETURN_IF_ERROR(
      fields.Dimension("max_position_embeddings", true, config.max_position_embeddings));
  config.num_kv_heads = config.num_qo_heads;
  PKV_RETURN_IF_ERROR(fields.Dimension("num_key_value_heads", false, config.num_kv_heads));
  if (!IsGiven(object, "head_dim") && config.hidden_size % config.num_qo_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("config.json: hidden_size ", config.hidden_size,
                                                   " is no multiple of num_attention_heads ",
                                                   config.num_qo_heads));
  }
  config.head_dim = config.hidden_size / config.num_qo_heads;
  PKV_RETURN_IF_ERROR(fields.Dimension("head_dim", false, config.head_dim));

  if (config.head_dim != 64 && config.head_dim != 128) {
    return absl::UnimplementedError(
        absl::StrCat("config.json: head_dim ", config.head_dim, " is not in {64, 128}"));
  }
  if (config.num_qo_heads > kMaxDimension / config.head_dim) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: num_attention_heads ", config.num_qo_heads, " of head_dim ",
                     config.head_dim, " exceed ", kMaxDimension, " in all"));
  }
  if (config.num_qo_heads % config.num_kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: num_attention_heads ", config.num_qo_heads,
                     " is no multiple of num_key_value_heads ", config.num_kv_heads));
  }
  if (config.num_layers > kMaxLayers) {
    return absl::UnimplementedError(absl::StrCat(
        "config.json: num_hidden_layers ", config.num_layers, " is not at most ", kMaxLayers));
  }
  if (config.num_kv_heads > kMaxKvHeads) {
    return absl::UnimplementedError(absl::StrCat(
        "config.json: num_key_value_heads ", config.num_kv_heads, " is not at most ", kMaxKvHeads));
  }
  return absl::OkStatus();
}

// `rope` is rope_scaling (rope_type and factors), or rope_parameters of later writers, which holds
// rope_theta too.
absl::Status ReadRopeScaling(const char* name, const Json& rope, ModelConfig& config) {
  if (!rope.is_object()) return WrongType(name, rope, "an object");
  const FieldReader fields(rope);
  PKV_RETURN_IF_ERROR(fields.Positive("rope_theta", false, config.rope_theta));
  const char* type_field = IsGiven(rope, "rope_type") ? "rope_type" : "type";
  PKV_ASSIGN_OR_RETURN(const std::string type, fields.Text(type_field));
  if (type.empty() || type == "default") return absl::OkStatus();
  if (type != "llama3") {
    return absl::UnimplementedError(absl::StrCat("config.json: ", name, " ", type_field, " '", type,
                                                 "' is not 'llama3' or 'default'"));
  }
  PKV_RETURN_IF_ERROR(fields.Positive("factor", true, config.rope_factor));
  PKV_RETURN_IF_ERROR(fields.Positive("low_freq_factor", true, config.rope_low_freq_factor));
  PKV_RETURN_IF_ERROR(fields.Positive("high_freq_factor", true, config.rope_high_freq_factor));
  PKV_RETURN_IF_ERROR(fields.Dimension("original_max_position_embeddings", true,
                                       config.rope_original_max_position));
  if (config.rope_high_freq_factor <= config.rope_low_freq_factor) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: high_freq_factor ", config.rope_high_freq_factor,
                     " is not greater than low_freq_factor ", config.rope_low_freq_factor));
  }
  return absl::OkStatus();
}

absl::Status ReadTokenIds(const Json& object, ModelConfig& config) {
  const auto is_token_id = [&](const Json& value) {
    return value.is_number_integer() && value >= 0 && value < config.vocab_size;
  };
  if (IsGiven(object, "bos_token_id")) {
    const Json& value = object.at("bos_token_id");
    if (!is_token_id(value)) return WrongType("bos_token_id", value, "an id of the vocabulary");
    config.bos_token_id = value.get<int32_t>();
  }
  if (IsGiven(object, "eos_token_id")) {
    const Json& value = object.at("eos_token_id");
    const Json ids = value.is_array() ? value : Json::array({value});
    for (const Json& id : ids) {
      if (!is_token_id(id)) return WrongType("eos_token_id", value, "ids of the vocabulary");
      config.eos_token_ids.push_back(id.get<int32_t>());
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> ParseModelConfig(const Json& object) {
  if (!object.is_object()) {
    return absl::InvalidArgumentError("config.json is not a JSON object");
  }
  ModelConfig config;
  config.rms_norm_eps = 1e-6;  // the defaults of Hugging Face's LlamaConfig
  config.rope_theta = 10000;
  PKV_RETURN_IF_ERROR(CheckFamily(object));
  PKV_RETURN_IF_ERROR(ReadDimensions(object, config));
  const FieldReader fields(object);
  PKV_RETURN_IF_ERROR(fields.Positive("rms_norm_eps", false, config.rms_norm_eps));
  PKV_RETURN_IF_ERROR(fields.Positive("rope_theta", false, config.rope_theta));
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (!IsGiven(object, name)) continue;
    PKV_RETURN_IF_ERROR(ReadRopeScaling(name, object.at(name), config));
  }
  PKV_RETURN_IF_ERROR(fields.Boolean("tie_word_embeddings", config.tie_word_embeddings));
  PKV_RETURN_IF_ERROR(fields.Boolean("attention_bias", config.attention_bias));
  PKV_RETURN_IF_ERROR(fields.Boolean("mlp_bias", config.mlp_bias));
  PKV_RETURN_IF_ERROR(ReadTokenIds(object, config));
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/config.json");
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) return absl::NotFoundError(absl::StrCat(path, ": ", error.message()));
  if (size > kMaxConfigBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", size, " bytes, more than ", kMaxConfigBytes));
  }
  std::ifstream file(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  const Json object = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (object.is_discarded()) return absl::InvalidArgumentError(absl::StrCat(path, ": not JSON"));
  return ParseModelConfig(object);
}

}  // namespace pkv
