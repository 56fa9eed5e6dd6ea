#ifndef PKV_WORKER_EVAL_LOGIT_METRICS_H_
#define PKV_WORKER_EVAL_LOGIT_METRICS_H_

#include <cstdint>
#include <span>
#include <vector>

namespace pkv {

inline constexpr int kTopTokens = 5;

// The next-token distributions that others are compared with, and what is needed of each again and
// again. Thread-safe (immutable).
class ReferenceLogits {
 public:
  ReferenceLogits() = default;
  // logits: [num_tokens, vocab_size] fp32. REQUIRES: vocab_size is positive.
  ReferenceLogits(std::vector<float> logits, int vocab_size);

  int vocab_size() const { return vocab_size_; }
  int num_tokens() const { return static_cast<int>(norms_.size()); }
  std::span<const float> token(int i) const {
    return std::span(logits_).subspan(size_t(i) * vocab_size_, vocab_size_);
  }
  // log of the sum of e^logit.
  double norm(int i) const { return norms_[i]; }
  std::span<const float> probabilities(int i) const {
    return std::span(probabilities_).subspan(size_t(i) * vocab_size_, vocab_size_);
  }
  // The min(5, vocab_size) most likely tokens, most likely first; of equals the lowest id.
  std::span<const int32_t> top(int i) const {
    return std::span(top_).subspan(size_t(i) * num_top_, num_top_);
  }

 private:
  int vocab_size_ = 0, num_top_ = 0;
  std::vector<float> logits_, probabilities_;
  std::vector<double> norms_;
  std::vector<int32_t> top_;
};

// One predicted token.
struct TokenComparison {
  double kl = 0;             // KL(reference || other), nats
  double nll = 0;            // of the token that followed, under the other
  double reference_nll = 0;  // the same under the reference
  double top5_shared = 0;    // |top 5 of one and of the other| / 5
  bool top1_same = false;
};

// logits: [reference.num_tokens(), vocab_size] fp32; targets: the tokens that really followed.
std::vector<TokenComparison> CompareLogits(const ReferenceLogits& reference,
                                           std::span<const float> logits,
                                           std::span<const int32_t> targets);

// What `tokens` say together. All 0 without tokens.
struct LogitSummary {
  double nll = 0, reference_nll = 0;  // means
  double kl = 0, kl_p99 = 0;          // mean; see KlPercentile
  double top1_agreement = 0;          // share of tokens with the same most likely successor
  double top5_agreement = 0;          // mean of top5_shared
};
LogitSummary Summarise(std::span<const TokenComparison> tokens);

// The smallest KL that a share `fraction` of the tokens does not exceed; 0 without tokens.
// REQUIRES: 0 < fraction <= 1.
double KlPercentile(std::span<const TokenComparison> tokens, double fraction);

}  // namespace pkv

#endif  // PKV_WORKER_EVAL_LOGIT_METRICS_H_
