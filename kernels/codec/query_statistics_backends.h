#ifndef PKV_KERNELS_CODEC_QUERY_STATISTICS_BACKENDS_H_
#define PKV_KERNELS_CODEC_QUERY_STATISTICS_BACKENDS_H_

#include <memory>

#include "absl/status/statusor.h"
#include "pkv/kernels/query_statistics.h"

namespace pkv {

// What QueryStatistics::Make() dispatches to; built with CUDA only. REQUIRES: the shape was
// checked.
absl::StatusOr<std::unique_ptr<QueryStatistics>> MakeQueryStatisticsCuda(
    const QueryStatisticsShape& shape, const ComputeContext& ctx);

// InvalidArgument: what can be seen of a call without reading device memory is wrong.
absl::Status CheckQuerySpan(int64_t first_token, int64_t end);
// `expected`: the position that comes next; `end`: that of the prompt's end.
absl::Status CheckQueryChunk(const QueryStatisticsShape& shape, const QueryChunk& chunk,
                             int64_t expected, int64_t end);
absl::Status CheckSampledKeys(const QueryStatisticsShape& shape, const KvTensorView& kv,
                              int64_t first_token);
absl::Status CheckImportance(const KvTensorView& kv, const float* importance);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_QUERY_STATISTICS_BACKENDS_H_
