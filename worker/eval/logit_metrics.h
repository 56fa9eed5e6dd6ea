#ifndef PKV_WORKER_EVAL_LOGIT_METRICS_H_
#define PKV_WORKER_EVAL_LOGIT_METRICS_H_

#include <cstdint>
#include <span>
#include <vector>

namespace pkv {

// Compares next-token distributions with reference ones.
// Thread-compatible.
class LogitComparison {
 public:
  // reference, logits: [targets.size(), vocab_size] fp32; targets: the tokens that really followed.
  void Add(std::span<const float> reference, std::span<const float> logits,
           std::span<const int32_t> targets);

  int64_t num_tokens() const { return static_cast<int64_t>(kl_.size()); }
  // Of the targets under `logits`, nats. 0 with no tokens, as all below.
  double mean_nll() const;
  // KL(reference || logits), nats.
  double mean_kl() const;
  // The smallest KL that a share `fraction` of the tokens does not exceed. REQUIRES: 0 < fraction
  // <= 1.
  double KlPercentile(double fraction) const;
  // Share of tokens with the same most likely next token.
  double top1_agreement() const;

 private:
  std::vector<double> kl_;
  double nll_ = 0;
  int64_t agreed_ = 0;
};

}  // namespace pkv

#endif  // PKV_WORKER_EVAL_LOGIT_METRICS_H_
