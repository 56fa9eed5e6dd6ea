#include "worker/eval/logit_metrics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "proto/base/log.h"

namespace pkv {
namespace {

double LogSumExp(std::span<const float> logits) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit} - largest);
  return largest + std::log(sum);
}

}  // namespace

void LogitComparison::Add(std::span<const float> reference, std::span<const float> logits,
                          std::span<const int32_t> targets) {
  if (targets.empty()) return;
  PKV_CHECK(reference.size() == logits.size() && logits.size() % targets.size() == 0,
            reference.size(), " ", logits.size(), " ", targets.size());
  const size_t vocab_size = logits.size() / targets.size();
  for (size_t i = 0; i < targets.size(); ++i) {
    const std::span<const float> p = reference.subspan(i * vocab_size, vocab_size);
    const std::span<const float> q = logits.subspan(i * vocab_size, vocab_size);
    const double p_norm = LogSumExp(p), q_norm = LogSumExp(q);
    double kl = 0;
    for (size_t t = 0; t < vocab_size; ++t) {
      const double log_p = p[t] - p_norm;
      kl += std::exp(log_p) * (log_p - (q[t] - q_norm));
    }
    kl_.push_back(kl);
    nll_ -= q[targets[i]] - q_norm;
    const auto p_top = std::max_element(p.begin(), p.end()) - p.begin();
    agreed_ += p_top == std::max_element(q.begin(), q.end()) - q.begin() ? 1 : 0;
  }
}

double LogitComparison::mean_nll() const {
  return kl_.empty() ? 0 : nll_ / static_cast<double>(kl_.size());
}

double LogitComparison::mean_kl() const {
  return kl_.empty()
             ? 0
             : std::accumulate(kl_.begin(), kl_.end(), 0.0) / static_cast<double>(kl_.size());
}

double LogitComparison::KlPercentile(double fraction) const {
  if (kl_.empty()) return 0;
  std::vector<double> sorted = kl_;
  std::sort(sorted.begin(), sorted.end());
  const auto rank = static_cast<size_t>(std::ceil(fraction * static_cast<double>(sorted.size())));
  return sorted[std::clamp<size_t>(rank, 1, sorted.size()) - 1];
}

double LogitComparison::top1_agreement() const {
  return kl_.empty() ? 0 : static_cast<double>(agreed_) / static_cast<double>(kl_.size());
}

}  // namespace pkv
