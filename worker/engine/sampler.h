#ifndef PKV_WORKER_ENGINE_SAMPLER_H_
#define PKV_WORKER_ENGINE_SAMPLER_H_

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"

namespace pkv {

struct SamplingParams {
  float temperature = 0;  // 0: greedy, ties to the lowest id
  float top_p = 1;        // (0, 1]
  uint64_t seed = 0;
};

struct SampledToken {
  int32_t token_id = 0;
  float logprob = 0;  // natural log, of the untempered distribution
};

// Same seed, same logits, same tokens: on every machine.
// Thread-compatible.
class Sampler {
 public:
  // InvalidArgument: temperature negative or not finite, top_p outside (0, 1].
  static absl::StatusOr<Sampler> Make(const SamplingParams& params);
  // InvalidArgument: a logit is NaN or +infinity.
  absl::StatusOr<SampledToken> Sample(std::span<const float> logits);

 private:
  explicit Sampler(const SamplingParams& params) : params_(params) {}
  SamplingParams params_;
  uint64_t num_drawn_ = 0;
};

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_SAMPLER_H_
