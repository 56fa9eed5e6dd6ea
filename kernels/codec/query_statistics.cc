#include "pkv/kernels/query_statistics.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/codec/query_statistics_backends.h"
#include "pkv/block/kv_shape.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

constexpr uintptr_t kAlignment = 16;  // bytes of one access
constexpr int64_t kStrideMultiple = kAlignment / sizeof(uint16_t);

absl::Status CheckAligned(absl::string_view name, const void* pointer, uintptr_t alignment) {
  if (pointer == nullptr) return absl::InvalidArgumentError(absl::StrCat(name, " is null"));
  const uintptr_t rest = reinterpret_cast<uintptr_t>(pointer) % alignment;
  if (rest == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", rest, " bytes past a multiple of ", alignment));
}

absl::Status CheckStride(absl::string_view name, int64_t stride, int64_t least) {
  if (stride >= least && stride % kStrideMultiple == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " ", stride, " is below ", least, " or no multiple of ", kStrideMultiple));
}

}  // namespace

absl::Status CheckQuerySpan(int64_t first_token, int64_t end) {
  constexpr int64_t kLimit = std::numeric_limits<int32_t>::max();
  if (first_token >= 0 && first_token <= end && end <= kLimit) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("queries at ", first_token, "..", end, ": not in order in 0..", kLimit));
}

absl::Status CheckQueryChunk(const QueryStatisticsShape& shape, const QueryChunk& chunk,
                             int64_t expected, int64_t end) {
  if (chunk.first_token != expected) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk at ", chunk.first_token, " of a layer that is at ", expected));
  }
  if (chunk.num_queries < 0 || chunk.num_queries > end - expected) {
    return absl::InvalidArgumentError(absl::StrCat("num_queries ", chunk.num_queries, " not in 0..",
                                                   end - expected, ", what the prompt has"));
  }
  if (chunk.num_queries == 0) return absl::OkStatus();
  PKV_RETURN_IF_ERROR(CheckAligned("q", chunk.q, kAlignment));
  PKV_RETURN_IF_ERROR(
      CheckStride("q_stride", chunk.q_stride, int64_t{shape.num_qo_heads} * shape.head_dim));
  return chunk.lse == nullptr ? absl::OkStatus() : CheckAligned("lse", chunk.lse, sizeof(float));
}

absl::Status CheckSampledKeys(const QueryStatisticsShape& shape, const KvTensorView& kv,
                              int64_t first_token) {
  if (kv.num_kv_heads != shape.num_kv_heads || kv.head_dim != shape.head_dim) {
    return absl::InvalidArgumentError(absl::StrCat("kv has ", kv.num_kv_heads, " heads of ",
                                                   kv.head_dim, ", not ", shape.num_kv_heads,
                                                   " of ", shape.head_dim));
  }
  PKV_RETURN_IF_ERROR(CheckQuerySpan(first_token, first_token + kv.num_tokens));
  if (kv.num_tokens == 0) return absl::OkStatus();
  PKV_RETURN_IF_ERROR(CheckAligned("kv.k", kv.k, kAlignment));
  return CheckStride("kv.head_stride", kv.head_stride, int64_t{kv.num_tokens} * kv.head_dim);
}

absl::Status CheckImportance(const KvTensorView& kv, const float* importance) {
  if (kv.num_tokens == 0) return absl::OkStatus();
  return CheckAligned("importance", importance, sizeof(float));
}

absl::StatusOr<std::unique_ptr<QueryStatistics>> QueryStatistics::Make(
    const QueryStatisticsShape& shape, const ComputeContext& ctx) {
  PKV_RETURN_IF_ERROR(ValidateShape(
      {.num_layers = 1, .num_kv_heads = shape.num_kv_heads, .head_dim = shape.head_dim}));
  if (shape.num_qo_heads <= 0 || shape.num_qo_heads % shape.num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("num_qo_heads ", shape.num_qo_heads,
                                                   " is no positive multiple of num_kv_heads ",
                                                   shape.num_kv_heads));
  }
#ifdef PKV_WITH_CUDA
  return MakeQueryStatisticsCuda(shape, ctx);
#else
  return absl::UnimplementedError("device CUDA: this build has no CUDA");
#endif
}

}  // namespace pkv
