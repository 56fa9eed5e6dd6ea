#include "proto/base/histogram.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace pkv {
namespace {

// Threads are numbered as they come; those of one shard are kNumShards apart.
size_t ThreadNumber() {
  static std::atomic<size_t> num_threads{0};
  thread_local const size_t number = num_threads.fetch_add(1, std::memory_order_relaxed);
  return number;
}

void AddDouble(std::atomic<uint64_t>& slot, double value) {
  uint64_t bits = slot.load(std::memory_order_relaxed);
  while (!slot.compare_exchange_weak(bits,
                                     std::bit_cast<uint64_t>(std::bit_cast<double>(bits) + value),
                                     std::memory_order_relaxed)) {
  }
}

}  // namespace

std::vector<double> ExponentialBounds(double first, double factor, int count) {
  std::vector<double> bounds;
  for (double bound = first; count > 0; --count, bound *= factor) bounds.push_back(bound);
  return bounds;
}

std::vector<double> LatencyBounds() { return ExponentialBounds(100e-6, 2, 17); }
std::vector<double> LongBounds() { return ExponentialBounds(1e-3, 2, 20); }

Histogram::Histogram(std::vector<double> bounds)
    : bounds_(std::move(bounds)),
      // The sum, a bucket for each bound, and one above them.
      lines_per_shard_((bounds_.size() + 2 + Line().slots.size() - 1) / Line().slots.size()),
      lines_(kNumShards * lines_per_shard_) {}

std::atomic<uint64_t>& Histogram::Slot(size_t shard, size_t slot) {
  constexpr size_t kSlots = kLineBytes / sizeof(uint64_t);
  return lines_[shard * lines_per_shard_ + slot / kSlots].slots[slot % kSlots];
}

uint64_t Histogram::Load(size_t shard, size_t slot) const {
  return const_cast<Histogram*>(this)->Slot(shard, slot).load(std::memory_order_relaxed);
}

void Histogram::Observe(double value) {
  const size_t shard = ThreadNumber() % kNumShards;
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  Slot(shard, 1 + static_cast<size_t>(bucket)).fetch_add(1, std::memory_order_relaxed);
  AddDouble(Slot(shard, 0), value);
}

Histogram::Counts Histogram::Read() const {
  Counts counts;
  counts.buckets.resize(bounds_.size() + 1);
  for (size_t shard = 0; shard < kNumShards; ++shard) {
    counts.sum += std::bit_cast<double>(Load(shard, 0));
    for (size_t i = 0; i < counts.buckets.size(); ++i) counts.buckets[i] += Load(shard, 1 + i);
  }
  return counts;
}

}  // namespace pkv
