#include "pkv/kernels/query_sample.h"

#include <algorithm>

#include "proto/base/log.h"

namespace pkv {

bool QuerySample::Add(int64_t position) {
  PKV_CHECK(IsSampled(position), position);
  positions_.push_back(position);
  const int count = static_cast<int>(positions_.size());
  if (count < kMaxSamples) return false;
  const int64_t recent = positions_[count / 2];
  const auto stays = [&](int64_t p) { return p >= recent || (p + 1) % old_stride_ == 0; };
  // Twice the stride only when the old one no longer makes room: it then grows with the time line,
  // not with the number of calls.
  while (std::count_if(positions_.begin(), positions_.end(), stays) > kMaxSamples / 4 * 3) {
    old_stride_ *= 2;
  }
  kept_.clear();
  for (int i = 0; i < count; ++i) {
    if (!stays(positions_[i])) continue;
    positions_[kept_.size()] = positions_[i];
    kept_.push_back(i);
  }
  positions_.resize(kept_.size());
  return true;
}

std::vector<int64_t> SampledPositions(int64_t first, int64_t end) {
  QuerySample sample;
  constexpr int64_t kStride = QuerySample::kStride;
  for (int64_t p = first / kStride * kStride + kStride - 1; p < end; p += kStride) sample.Add(p);
  return sample.positions();
}

}  // namespace pkv
