#include "worker/engine/llama_profile.h"

#include <charconv>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace pkv {
namespace {

// Settings beside shape, rope_theta and weights that change K and V: part of the identity, so that
// a directory with the same weights and another config never shares cache with this one.
std::string IdentitySuffix(const ModelConfig& config) {
  std::string lines;
  const std::pair<const char*, double> settings[] = {
      {"rms_norm_eps", config.rms_norm_eps},
      {"rope_factor", config.rope_factor},
      {"rope_low_freq_factor", config.rope_low_freq_factor},
      {"rope_high_freq_factor", config.rope_high_freq_factor},
      {"rope_original_max_position", config.rope_original_max_position}};
  for (const auto& [name, value] : settings) {
    char digits[32];  // the shortest text that reads back as `value`
    const char* end = std::to_chars(digits, digits + sizeof(digits), value).ptr;
    absl::StrAppend(&lines, name, "=", absl::string_view(digits, end - digits), "\n");
  }
  // Named only when set: models without biases keep the profiles they had.
  if (config.attention_bias) absl::StrAppend(&lines, "attention_bias=1\n");
  if (config.mlp_bias) absl::StrAppend(&lines, "mlp_bias=1\n");
  return lines;
}

}  // namespace

ModelProfile ProfileOf(const ModelConfig& config, const WeightFiles& files) {
  ModelProfile profile;
  profile.shape = config.kv_shape();
  profile.rope_theta = config.rope_theta;
  profile.weights = files.ComputeDigest(IdentitySuffix(config));
  return profile;
}

}  // namespace pkv
