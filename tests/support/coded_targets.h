#ifndef PKV_TESTS_SUPPORT_CODED_TARGETS_H_
#define PKV_TESTS_SUPPORT_CODED_TARGETS_H_

// What the values of a block were rounded to match, and how far from it they may decode.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/codec/key_feedback_math.h"
#include "tests/support/block_fixture.h"
#include "tests/support/coded_head.h"
#include "tests/support/error_bound.h"

namespace pkv {

// K or V of one kv head of a block, behind its sinks. A target is the value less its pattern and,
// for K with error feedback, less the weighted errors of the runs before: recomputed in fp64
// from what the frame decodes to. `slack`: how far the encoder's own binary32 sum may be from that.
struct CodedTargets {
  int head_dim = 0;
  std::vector<double> original;                // [slot][channel], pattern subtracted
  std::vector<double> target, slack, decoded;  // likewise

  size_t At(int slot, int channel) const { return size_t(slot) * head_dim + channel; }
};

inline CodedTargets TargetsOf(const EncodedBlock& block, const KvTensorView& kv, int head,
                              bool is_k) {
  const CodedHead coded(block.header, block.frame.span(), &block.codebook, head);
  CodedTargets out;
  const int d = out.head_dim = kv.head_dim;
  out.original.resize(size_t(kBlockTokens) * d);
  out.decoded = out.slack = out.original;
  for (int slot = block.header.num_sinks; slot < kBlockTokens; ++slot) {
    for (int j = 0; j < d; ++j) {
      const CodedValue value = coded.Value(is_k, slot, j);
      const float x = Float16ToFloat((is_k ? kv.k_row(head, slot) : kv.v_row(head, slot))[j]);
      out.original[out.At(slot, j)] = x - value.pattern;
      out.decoded[out.At(slot, j)] = value.Residual();
    }
  }
  out.target = out.original;
  const KeyFeedback* feedback = block.assignment.feedback.get();
  if (!is_k || feedback == nullptr) return out;
  const auto order = feedback->order_of(head);
  const int group_tokens = block.header.encoding().k_group_tokens;
  for (int begin = 0; begin < kBlockTokens; begin += group_tokens) {
    const int first = std::max<int>(begin, block.header.num_sinks), end = begin + group_tokens;
    double largest = 0;
    for (int slot = first; slot < end; ++slot) {
      for (int j = 0; j < d; ++j) {
        largest = std::max(largest, std::abs(out.original[out.At(slot, j)]));
      }
    }
    const ErrorUnit unit = ErrorUnitFor(ToFiniteFloat16(static_cast<float>(largest)));
    for (int slot = first; slot < end; ++slot) {
      for (int step = 0; step < d; ++step) {
        const auto weights = feedback->weights_of(head).subspan(size_t(step) * d, d);
        double sum = 0;
        for (int earlier = 0; earlier < step; ++earlier) {
          const size_t from = out.At(slot, order[earlier]);
          // Both are binary32, and so is what the encoder takes from one another.
          const float error =
              static_cast<float>(out.decoded[from]) - static_cast<float>(out.original[from]);
          sum += weights[earlier] * CountedError(error, unit);
        }
        sum *= double{unit.value} * feedback->scales_of(head)[step];
        const size_t at = out.At(slot, order[step]);
        out.target[at] -= sum;
        // Factor, sum, product and difference round once each.
        out.slack[at] = kFloatUnit * (4 * std::abs(sum) + 2 * std::abs(out.original[at]));
      }
    }
  }
  return out;
}

// Coarse values that share a scale and a zero point: their slots and channels.
struct CodedGroup {
  int first_slot, end_slot, first_channel, end_channel;
};
inline std::vector<CodedGroup> GroupsOf(const ObjectHeader& header, bool is_k) {
  const Encoding e = header.encoding();
  const int d = header.head_dim, num_coarse = kBlockTokens - e.k_fine_tokens;
  std::vector<CodedGroup> groups;
  if (is_k) {
    for (int first = 0; first < kBlockTokens; first += e.k_group_tokens) {
      const int begin = std::max<int>(first, header.num_sinks);
      const int end = std::min(first + e.k_group_tokens, num_coarse);
      for (int j = 0; j < d && begin < end; ++j) groups.push_back({begin, end, j, j + 1});
    }
    return groups;
  }
  for (int slot = header.num_sinks; slot < kBlockTokens; ++slot) {
    for (int j = 0; j < d; j += e.v_group_channels) {
      groups.push_back({slot, slot + 1, j, j + e.v_group_channels});
    }
  }
  return groups;
}

// The largest |decoded - target| of a block, as a share of what CodedBound() and FineBound() allow
// it; infinite when anything is not finite.
inline double WorstShareOfBound(const EncodedBlock& block, const KvTensorView& kv, int head,
                                bool is_k) {
  const CodedTargets t = TargetsOf(block, kv, head, is_k);
  const CodedHead coded(block.header, block.frame.span(), &block.codebook, head);
  double worst = 0;
  const auto take = [&](size_t at, double bound) {
    const double error = std::abs(t.decoded[at] - t.target[at]);
    const double share = error == 0 ? 0 : error / (bound + t.slack[at]);
    worst = std::isfinite(share) ? std::max(worst, share) : std::numeric_limits<double>::infinity();
  };
  for (const CodedGroup& group : GroupsOf(block.header, is_k)) {
    GroupRange range = {std::numeric_limits<double>::infinity(),
                        -std::numeric_limits<double>::infinity()};
    const auto each = [&](const auto& visit) {
      for (int slot = group.first_slot; slot < group.end_slot; ++slot) {
        for (int j = group.first_channel; j < group.end_channel; ++j) visit(slot, j);
      }
    };
    each([&](int slot, int j) {
      const size_t at = t.At(slot, j);
      range.low = std::min(range.low, t.target[at] - t.slack[at]);
      range.high = std::max(range.high, t.target[at] + t.slack[at]);
    });
    each([&](int slot, int j) {
      const CodedValue value = coded.Value(is_k, slot, j);
      take(t.At(slot, j), CodedBound(range, value.scale, value.zero, value.pattern, value.bits));
    });
  }
  const int num_fine = is_k ? block.header.encoding().k_fine_tokens : 0;
  for (int slot = kBlockTokens - num_fine; slot < kBlockTokens; ++slot) {
    for (int j = 0; j < t.head_dim; ++j) {
      const CodedValue value = coded.K(slot, j);
      take(t.At(slot, j),
           FineBound(t.target[t.At(slot, j)], value.scale, value.zero, value.pattern));
    }
  }
  return worst;
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_CODED_TARGETS_H_
