#include "worker/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// Draw number `index` of a seed, in [0, 1): SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), which
// needs no state but the counter.
double UniformDraw(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1p-53;
}

// e^x for x <= 0 by additions and multiplications alone: std::exp may differ in the last bit from
// one machine to another, and a different bit may choose a different token. x = n ln 2 + r with
// |r| <= 0.35; the Taylor polynomial of degree 13 leaves less than 1e-17.
double ExpNonPositive64(double x) {
  constexpr double kLog2E = 0x1.71547652b82fep+0;
  constexpr double kLn2Upper = 0x1.62e42feep-1;  // 32 bits: its product with n is exact
  constexpr double kLn2Lower = 0x1.a39ef35793c76p-33;
  if (!(x > -700)) return 0;
  const double n = std::rint(x * kLog2E);
  const double r = (x - n * kLn2Upper) - n * kLn2Lower;
  double p = 1;
  for (int k = 13; k >= 1; --k) p = p * r / k + 1;
  return std::ldexp(p, static_cast<int>(n));
}

absl::Status CheckLogits(std::span<const float> logits) {
  float largest = -std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]) || logits[i] == std::numeric_limits<float>::infinity()) {
      return absl::InvalidArgumentError(
          absl::StrCat("logit ", i, " is ", logits[i], ", not finite or -infinity"));
    }
    largest = std::max(largest, logits[i]);
  }
  if (std::isinf(largest)) {
    return absl::InvalidArgumentError(absl::StrCat("none of ", logits.size(), " logits is finite"));
  }
  return absl::OkStatus();
}

// The first of the largest.
int32_t ArgMax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// The smallest set of most likely tokens whose weights reach `top_p` of `total`, most likely first.
// Ties go to the lower id.
std::vector<int32_t> Nucleus(std::span<const double> weights, double total, double top_p) {
  // Tokens below this weight add up to less than (1 - top_p) of the total: they are not in the set
  // and need not be sorted.
  const double cut = (1 - top_p) * total / static_cast<double>(weights.size());
  std::vector<int32_t> ids;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] >= cut) ids.push_back(static_cast<int32_t>(i));
  }
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int32_t a, int32_t b) { return weights[a] > weights[b]; });
  double mass = 0;
  size_t size = 0;
  while (size < ids.size() && mass < top_p * total) mass += weights[ids[size++]];
  ids.resize(std::max<size_t>(size, 1));
  return ids;
}

int32_t Draw(std::span<const float> logits, const SamplingParams& params, double uniform) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  std::vector<double> weights(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    weights[i] = ExpNonPositive64((logits[i] - largest) / params.temperature);
  }
  double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<int32_t> ids;
  if (params.top_p < 1) {
    ids = Nucleus(weights, total, params.top_p);
    total = 0;
    for (const int32_t id : ids) total += weights[id];
  } else {
    ids.resize(logits.size());
    std::iota(ids.begin(), ids.end(), 0);
  }
  const double target = uniform * total;
  double mass = 0;
  int32_t last = ids.front();  // with weight: what is left when rounding leaves the sum short
  for (const int32_t id : ids) {
    if (weights[id] == 0) continue;
    last = id;
    mass += weights[id];
    if (mass > target) break;
  }
  return last;
}

float LogProbability(std::span<const float> logits, int32_t token_id) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (const float logit : logits) total += std::exp(logit - largest);
  return static_cast<float>(logits[token_id] - largest - std::log(total));
}

}  // namespace

absl::StatusOr<Sampler> Sampler::Make(const SamplingParams& params) {
  if (!std::isfinite(params.temperature) || params.temperature < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("temperature ", params.temperature, " is not finite and at least 0"));
  }
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("top_p ", params.top_p, " is not in (0, 1]"));
  }
  return Sampler(params);
}

absl::StatusOr<SampledToken> Sampler::Sample(std::span<const float> logits) {
  PKV_RETURN_IF_ERROR(CheckLogits(logits));
  SampledToken token;
  token.token_id = params_.temperature == 0
                       ? ArgMax(logits)
                       : Draw(logits, params_, UniformDraw(params_.seed, num_drawn_++));
  token.logprob = LogProbability(logits, token.token_id);
  return token;
}

}  // namespace pkv
