#include "tests/bench/prefill_section.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <utility>

#include "kernels/device/cuda_status.h"
#include "kernels/device/device_buffer.h"
#include "pkv/kernels/prefill_attention.h"
#include "pkv/kernels/query_sample.h"
#include "pkv/kernels/query_statistics.h"
#include "proto/base/float16.h"
#include "proto/base/status_macros.h"
#include "tests/bench/gpu_timing.h"

namespace pkv {
namespace {

struct PrefillShape {
  int num_queries, num_tokens;
  int num_qo_heads = 32, num_kv_heads = 8, head_dim = 128;
  QueryType query_type = QueryType::kFloat16;

  double visible() const {  // tokens, summed over queries
    const double first = num_tokens - num_queries;
    return num_queries * (first + (num_queries + 1) / 2.0);
  }
};

// prefill_peers.py has the same.
constexpr PrefillShape kShapes[] = {
    {32768, 32768}, {8192, 32768}, {4096, 32768},           {8192, 8192},
    {2048, 2048},   {512, 32768},  {8192, 8192, 16, 16, 64}};
constexpr PrefillShape kBfloat16Shape = {4096, 32768, 32, 8, 128, QueryType::kBfloat16};

// `count` normal numbers as fp16 (or the same bits as bf16), a million of them over and over.
absl::StatusOr<DeviceBuffer> RandomBuffer(size_t count, void* stream) {
  constexpr size_t kDistinct = size_t{1} << 20;
  std::mt19937_64 engine(1);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> values(std::min(count, kDistinct));
  for (uint16_t& x : values) x = FloatToFloat16(normal(engine));
  PKV_ASSIGN_OR_RETURN(DeviceBuffer buffer, DeviceBuffer::Make(count * sizeof(uint16_t), stream));
  for (size_t at = 0; at < count; at += values.size()) {
    const size_t bytes = std::min(values.size(), count - at) * sizeof(uint16_t);
    PKV_RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyAsync(buffer.As<uint16_t>() + at, values.data(), bytes,
                                   cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)),
                   "numbers for the device"));
  }
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "numbers"));
  return buffer;
}

class PrefillBench {
 public:
  PrefillBench(const PrefillShape& shape, int repetitions, void* stream)
      : shape_(shape),
        repetitions_(repetitions),
        stream_(stream),
        ctx_{.device = Device::kCuda, .stream = stream} {}

  absl::Status Allocate() {
    const size_t row = size_t(shape_.num_qo_heads) * shape_.head_dim;
    const size_t kv = size_t(shape_.num_tokens) * shape_.num_kv_heads * shape_.head_dim;
    PKV_ASSIGN_OR_RETURN(q_, RandomBuffer(shape_.num_queries * row, stream_));
    PKV_ASSIGN_OR_RETURN(k_, RandomBuffer(kv, stream_));
    PKV_ASSIGN_OR_RETURN(v_, RandomBuffer(kv, stream_));
    PKV_ASSIGN_OR_RETURN(out_,
                         DeviceBuffer::Make(shape_.num_queries * row * sizeof(uint16_t), stream_));
    PKV_ASSIGN_OR_RETURN(
        lse_, DeviceBuffer::Make(size_t(shape_.num_queries) * shape_.num_qo_heads * sizeof(float),
                                 stream_));
    PKV_ASSIGN_OR_RETURN(
        importance_, DeviceBuffer::Make(
                         size_t(shape_.num_tokens) * shape_.num_kv_heads * sizeof(float), stream_));
    return absl::OkStatus();
  }

  absl::StatusOr<PrefillRow> TimeAttention() {
    PKV_ASSIGN_OR_RETURN(
        const auto attention,
        PrefillAttention::Make({shape_.num_qo_heads, shape_.num_kv_heads, shape_.head_dim,
                                shape_.query_type, shape_.query_type},
                               ctx_));
    const int64_t row = int64_t{shape_.num_qo_heads} * shape_.head_dim;
    const PrefillAttentionArgs args = {
        .num_queries = shape_.num_queries,
        .sm_scale = 1 / std::sqrt(static_cast<float>(shape_.head_dim)),
        .q = q_.data(),
        .q_stride = row,
        .kv = keys(),
        .out = out_.data(),
        .out_stride = row,
        .lse = lse_.As<float>()};
    const bool is_bfloat16 = shape_.query_type == QueryType::kBfloat16;
    return Time(is_bfloat16 ? "attend bf16" : "attend",
                4.0 * static_cast<double>(row) * shape_.visible(),
                [&](int) { return attention->Run(args, ctx_); });
  }

  // After TimeAttention(), whose lse they read: the chunk is taken for the whole prompt.
  absl::Status TimeStatistics(std::vector<PrefillRow>& rows) {
    PKV_ASSIGN_OR_RETURN(
        const auto statistics,
        QueryStatistics::Make(
            {shape_.num_qo_heads, shape_.num_kv_heads, shape_.head_dim, shape_.query_type}, ctx_));
    const int64_t row = int64_t{shape_.num_qo_heads} * shape_.head_dim;
    const int first = shape_.num_tokens - shape_.num_queries;
    const double d = shape_.head_dim;
    const QueryChunk chunk = {.first_token = first,
                              .num_queries = shape_.num_queries,
                              .q = q_.data(),
                              .q_stride = row,
                              .lse = lse_.As<float>()};
    PKV_ASSIGN_OR_RETURN(
        rows.emplace_back(),
        Time("moments", 2.0 * static_cast<double>(row) * shape_.num_queries * d,
             [&](int) -> absl::Status {
               PKV_RETURN_IF_ERROR(statistics->Start(first, shape_.num_tokens, ctx_));
               PKV_RETURN_IF_ERROR(statistics->Add(chunk, ctx_));
               return statistics->Sum(ctx_);
             }));
    const double samples = static_cast<double>(SampledPositions(first, shape_.num_tokens).size());
    PKV_ASSIGN_OR_RETURN(
        rows.emplace_back(),
        Time("importance", 2.0 * static_cast<double>(row) * samples * shape_.num_tokens, [&](int) {
          return statistics->Importance(keys(), 0, importance_.As<float>(), ctx_);
        }));
    PKV_ASSIGN_OR_RETURN(rows.emplace_back(), Time("feedback", 0, [&](int) {
                           return statistics->Feedback(true, 0.01, ctx_).status();
                         }));
    return absl::OkStatus();
  }

 private:
  KvTensorView keys() {
    return {k_.As<uint16_t>(), v_.As<uint16_t>(), shape_.num_kv_heads,
            shape_.num_tokens, shape_.head_dim,   int64_t{shape_.num_tokens} * shape_.head_dim};
  }

  absl::StatusOr<PrefillRow> Time(std::string what, double operations,
                                  const std::function<absl::Status(int)>& launch) {
    PKV_ASSIGN_OR_RETURN(const LaunchTimes times, TimeLaunches(stream_, 1, repetitions_, launch));
    return PrefillRow{.what = std::move(what),
                      .num_queries = shape_.num_queries,
                      .num_tokens = shape_.num_tokens,
                      .num_qo_heads = shape_.num_qo_heads,
                      .num_kv_heads = shape_.num_kv_heads,
                      .head_dim = shape_.head_dim,
                      .operations = operations,
                      .graph = times.graph,
                      .us = times.us};
  }

  const PrefillShape shape_;
  const int repetitions_;
  void* stream_;
  const ComputeContext ctx_;
  DeviceBuffer q_, k_, v_, out_, lse_, importance_;
};

}  // namespace

absl::StatusOr<std::vector<PrefillRow>> TimePrefill(int repetitions, void* stream) {
  std::vector<PrefillRow> rows;
  for (const PrefillShape& shape : kShapes) {
    PrefillBench bench(shape, repetitions, stream);
    PKV_RETURN_IF_ERROR(bench.Allocate());
    PKV_ASSIGN_OR_RETURN(rows.emplace_back(), bench.TimeAttention());
  }
  PrefillBench bench(kBfloat16Shape, repetitions, stream);
  PKV_RETURN_IF_ERROR(bench.Allocate());
  PKV_ASSIGN_OR_RETURN(rows.emplace_back(), bench.TimeAttention());
  PKV_RETURN_IF_ERROR(bench.TimeStatistics(rows));
  return rows;
}

}  // namespace pkv
