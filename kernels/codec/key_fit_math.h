#ifndef PKV_KERNELS_CODEC_KEY_FIT_MATH_H_
#define PKV_KERNELS_CODEC_KEY_FIT_MATH_H_

// EncodeChannel() of key_encoder.cc by the 128 threads of a CTA, one a slot, all groups at once.
//
// The work is cut into phases with a barrier after each. FitKeys() gives their order to the kernel
// and to the test that runs them thread after thread on the CPU.

#include "kernels/codec/clip_ratio_math.h"
#include "kernels/codec/codec_math.h"
#include "kernels/codec/group_lanes_math.h"
#include "pkv/block/kv_shape.h"

namespace pkv {

// How K is fitted: equal for all threads of a CTA and all channels.
struct KeyFitRule {
  int group_tokens = 0;  // 32, 64, 128
  int num_sinks = 0;
  int num_fine = 0;  // slots at the end
  int bits = 0;
  int num_ratios = 0;
  bool unbiased = false;
};

// What the threads tell one another about the channel that is coded.
struct KeyFitShared {
  struct Group {
    float lows[kErrorSums], highs[kErrorSums];
    int folded_sums[kNumShrinkRatios][kErrorSums];
    int errors[kNumShrinkRatios];
    float code_sums[kErrorSums], value_sums[kErrorSums];
    float covariances[kErrorSums], variances[kErrorSums];
  };
  float targets[kBlockTokens];      // by slot
  Group groups[kBlockTokens / 32];  // groups hold 32 slots at least
};

// One thread: it codes its own slot, and as a worker of its slot's group does a part of the fit. A
// group has at least 32 workers, which is enough for 16 lanes and for every ratio. Groups of sinks
// only have no values: every phase passes them by. Thread-compatible.
class KeyFitThread {
 public:
  PKV_HOST_DEVICE KeyFitThread(const KeyFitRule& rule, int slot, KeyFitShared& shared)
      : rule_(rule),
        slot_(slot),
        group_index_(slot / rule.group_tokens),
        worker_(slot % rule.group_tokens),
        targets_(shared.targets),
        group_(&shared.groups[group_index_]) {
    const int begin = group_index_ * rule.group_tokens, end = begin + rule.group_tokens;
    first_ = begin > rule.num_sinks ? begin : rule.num_sinks;
    count_ = (end == kBlockTokens ? end - rule.num_fine : end) - first_;
  }

  PKV_HOST_DEVICE int group_index() const { return group_index_; }
  PKV_HOST_DEVICE bool is_coded() const { return slot_ >= rule_.num_sinks; }
  PKV_HOST_DEVICE bool is_fine() const { return slot_ >= kBlockTokens - rule_.num_fine; }
  // One worker of each group that has values.
  PKV_HOST_DEVICE bool is_first_worker() const { return worker_ == 0 && count_ > 0; }

  PKV_HOST_DEVICE void PutTarget(float target) { targets_[slot_] = target; }

  // Sixteen runs of consecutive values. Each starts from the group's first value, and of equal
  // values (0 and -0) keeps the earlier, as RangeOf() does; so, then, do runs taken in order.
  PKV_HOST_DEVICE void PutRange() {
    if (worker_ >= kErrorSums || count_ <= 0) return;
    const int run = (count_ + kErrorSums - 1) / kErrorSums, begin = worker_ * run;
    const int end = begin + run < count_ ? begin + run : count_;
    float low = targets_[first_], high = low;
    for (int i = begin; i < end; ++i) Widen(targets_[first_ + i], targets_[first_ + i], low, high);
    group_->lows[worker_] = low;
    group_->highs[worker_] = high;
  }

  PKV_HOST_DEVICE void PutFoldedSums() {
    if (count_ <= 0) return;
    low_ = group_->lows[0];
    high_ = group_->highs[0];
    for (int i = 1; i < kErrorSums; ++i) Widen(group_->lows[i], group_->highs[i], low_, high_);
    searched_ = stored_ = ShrunkGroupParams(low_, high_, 0, rule_.bits);
    if (rule_.num_ratios == 1) return;
    const ClipUnits units = ClipUnits::Of(low_, high_, rule_.bits);
    for (int i = worker_; i < rule_.num_ratios * kErrorSums; i += rule_.group_tokens) {
      const int ratio = i / kErrorSums, lane = i % kErrorSums;
      const int scale = ClipScaleUnits(ratio, rule_.bits);
      int sum = 0;
      for (int n = lane; n < count_; n += kErrorSums) {
        sum += FoldedDistance(units.DistanceOf(values()(n)), scale, rule_.bits);
      }
      group_->folded_sums[ratio][lane] = sum;
    }
  }

  PKV_HOST_DEVICE void FoldErrors() {
    if (worker_ >= rule_.num_ratios || count_ <= 0) return;
    int folded = 0;
    for (const int sum : group_->folded_sums[worker_]) folded += sum;
    group_->errors[worker_] =
        ClipRatioError(ClipScaleUnits(worker_, rule_.bits), count_, folded, rule_.bits);
  }

  PKV_HOST_DEVICE void ChooseRatio() {
    if (count_ <= 0 || !(low_ < high_)) return;
    int best = 0;
    for (int i = 1; i < rule_.num_ratios; ++i) {
      if (group_->errors[i] < group_->errors[best]) best = i;
    }
    searched_ = stored_ = ShrunkGroupParams(low_, high_, best, rule_.bits);
  }

  PKV_HOST_DEVICE void PutCodeSums() {
    if (worker_ >= kErrorSums || count_ <= 0) return;
    const CodeMeans sums = CodeSumLane(values(), worker_, count_, searched_, rule_.bits);
    group_->code_sums[worker_] = sums.code;
    group_->value_sums[worker_] = sums.value;
  }

  PKV_HOST_DEVICE void PutProducts() {
    if (worker_ >= kErrorSums || count_ <= 0) return;
    const CodeProducts sums =
        CodeProductLane(values(), worker_, count_, searched_, rule_.bits, means());
    group_->covariances[worker_] = sums.covariance;
    group_->variances[worker_] = sums.variance;
  }

  PKV_HOST_DEVICE void CorrectGain() {
    if (count_ <= 0) return;
    const CodeMeans mean = means();
    stored_ = UnbiasedParams(searched_, mean.code, mean.value, Fold(group_->covariances),
                             Fold(group_->variances));
  }

  // What stands in the frame for the group.
  PKV_HOST_DEVICE GroupParams stored() const { return stored_; }

  // The code of this slot's target, and what it decodes to.
  struct Coded {
    uint32_t code = 0;
    float value = 0;
  };
  PKV_HOST_DEVICE Coded Code() const {
    const float target = targets_[slot_];
    const float scale = Float16ToFloat(stored_.scale), zero = Float16ToFloat(stored_.zero);
    if (is_fine()) {
      const FineGrid fine = MakeFineGrid(scale, zero);
      const float code = QuantizeOne(target, fine.step, fine.low, MaxCode(kFineBits));
      return {static_cast<uint32_t>(code), DequantizeOne(code, fine.step, fine.low)};
    }
    const float code = QuantizeOne(target, Float16ToFloat(searched_.scale),
                                   Float16ToFloat(searched_.zero), MaxCode(rule_.bits));
    return {static_cast<uint32_t>(code), DequantizeOne(code, scale, zero)};
  }

 private:
  struct Values {
    const float* first;
    PKV_HOST_DEVICE float operator()(int i) const { return first[i]; }
  };
  PKV_HOST_DEVICE Values values() const { return {targets_ + first_}; }

  PKV_HOST_DEVICE static void Widen(float low, float high, float& lowest, float& highest) {
    lowest = low < lowest ? low : lowest;
    highest = high > highest ? high : highest;
  }

  PKV_HOST_DEVICE static float Fold(const float* lanes) {
    float sums[kErrorSums];
    for (int i = 0; i < kErrorSums; ++i) sums[i] = lanes[i];
    return FoldErrorSums(sums);
  }

  PKV_HOST_DEVICE CodeMeans means() const {
    const auto count = static_cast<float>(count_);
    return {Fold(group_->code_sums) / count, Fold(group_->value_sums) / count};
  }

  KeyFitRule rule_;
  int slot_, group_index_, worker_;
  int first_, count_;  // the slots of the group that are fitted: those with coarse codes
  float* targets_;
  KeyFitShared::Group* group_;
  float low_ = 0, high_ = 0;
  GroupParams searched_, stored_;
};

// Fits all groups to the targets that all threads have put. `run_all(f)` calls f(thread) for every
// thread and returns when all have done so.
template <typename RunAll>
PKV_HOST_DEVICE inline void FitKeys(const KeyFitRule& rule, const RunAll& run_all) {
  run_all([](KeyFitThread& thread) { thread.PutRange(); });
  run_all([](KeyFitThread& thread) { thread.PutFoldedSums(); });
  if (rule.num_ratios > 1) {
    run_all([](KeyFitThread& thread) { thread.FoldErrors(); });
    run_all([](KeyFitThread& thread) { thread.ChooseRatio(); });
  }
  if (!rule.unbiased) return;
  run_all([](KeyFitThread& thread) { thread.PutCodeSums(); });
  run_all([](KeyFitThread& thread) { thread.PutProducts(); });
  run_all([](KeyFitThread& thread) { thread.CorrectGain(); });
}

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_KEY_FIT_MATH_H_
