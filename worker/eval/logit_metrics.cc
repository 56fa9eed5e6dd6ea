#include "worker/eval/logit_metrics.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "proto/base/log.h"

namespace pkv {
namespace {

double LogSumExp(std::span<const float> logits) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit} - largest);
  return largest + std::log(sum);
}

// The `count` largest, largest first; of equals the lowest index.
void TopTokens(std::span<const float> logits, int count, int32_t* top) {
  int found = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (found == count && !(logits[i] > logits[top[count - 1]])) continue;
    int place = found < count ? found++ : count - 1;
    for (; place > 0 && logits[i] > logits[top[place - 1]]; --place) top[place] = top[place - 1];
    top[place] = static_cast<int32_t>(i);
  }
}

}  // namespace

ReferenceLogits::ReferenceLogits(std::vector<float> logits, int vocab_size)
    : vocab_size_(vocab_size),
      num_top_(std::min(kTopTokens, vocab_size)),
      logits_(std::move(logits)),
      probabilities_(logits_.size()) {
  PKV_CHECK(vocab_size > 0 && logits_.size() % vocab_size == 0, logits_.size(), " ", vocab_size);
  const size_t num_tokens = logits_.size() / vocab_size;
  norms_.resize(num_tokens);
  top_.resize(num_tokens * num_top_);
  for (size_t i = 0; i < num_tokens; ++i) {
    const std::span<const float> row = token(static_cast<int>(i));
    norms_[i] = LogSumExp(row);
    TopTokens(row, num_top_, top_.data() + i * num_top_);
    float* probabilities = probabilities_.data() + i * vocab_size;
    for (int t = 0; t < vocab_size; ++t) {
      probabilities[t] = static_cast<float>(std::exp(row[t] - norms_[i]));
    }
  }
}

std::vector<TokenComparison> CompareLogits(const ReferenceLogits& reference,
                                           std::span<const float> logits,
                                           std::span<const int32_t> targets) {
  const size_t vocab_size = reference.vocab_size();
  PKV_CHECK(static_cast<int>(targets.size()) == reference.num_tokens() &&
                logits.size() == targets.size() * vocab_size,
            reference.num_tokens(), " ", logits.size(), " ", targets.size());
  std::vector<TokenComparison> tokens(targets.size());
  for (size_t i = 0; i < targets.size(); ++i) {
    const int index = static_cast<int>(i);
    const std::span<const float> p = reference.token(index);
    const std::span<const float> weights = reference.probabilities(index);
    const std::span<const float> q = logits.subspan(i * vocab_size, vocab_size);
    const double p_norm = reference.norm(index), q_norm = LogSumExp(q);
    TokenComparison& token = tokens[i];
    for (size_t t = 0; t < vocab_size; ++t) {
      token.kl += weights[t] * ((p[t] - p_norm) - (q[t] - q_norm));
    }
    token.nll = q_norm - q[targets[i]];
    token.reference_nll = p_norm - p[targets[i]];
    const std::span<const int32_t> p_top = reference.top(index);
    int32_t q_top[kTopTokens];
    TopTokens(q, static_cast<int>(p_top.size()), q_top);
    token.top1_same = p_top[0] == q_top[0];
    const auto shared = std::count_if(p_top.begin(), p_top.end(), [&](int32_t id) {
      return std::find(q_top, q_top + p_top.size(), id) != q_top + p_top.size();
    });
    token.top5_shared = static_cast<double>(shared) / static_cast<double>(p_top.size());
  }
  return tokens;
}

LogitSummary Summarise(std::span<const TokenComparison> tokens) {
  LogitSummary summary;
  if (tokens.empty()) return summary;
  for (const TokenComparison& token : tokens) {
    summary.nll += token.nll;
    summary.reference_nll += token.reference_nll;
    summary.kl += token.kl;
    summary.top1_agreement += token.top1_same ? 1 : 0;
    summary.top5_agreement += token.top5_shared;
  }
  const auto count = static_cast<double>(tokens.size());
  for (double* sum : {&summary.nll, &summary.reference_nll, &summary.kl, &summary.top1_agreement,
                      &summary.top5_agreement}) {
    *sum /= count;
  }
  summary.kl_p99 = KlPercentile(tokens, 0.99);
  return summary;
}

double KlPercentile(std::span<const TokenComparison> tokens, double fraction) {
  if (tokens.empty()) return 0;
  std::vector<double> sorted;
  sorted.reserve(tokens.size());
  for (const TokenComparison& token : tokens) sorted.push_back(token.kl);
  std::sort(sorted.begin(), sorted.end());
  const auto rank = static_cast<size_t>(std::ceil(fraction * static_cast<double>(sorted.size())));
  return sorted[std::clamp<size_t>(rank, 1, sorted.size()) - 1];
}

}  // namespace pkv
