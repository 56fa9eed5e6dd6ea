#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/codec/key_feedback_kernels.h"
#include "kernels/codec/query_statistics_backends.h"
#include "kernels/codec/query_statistics_kernels.h"
#include "kernels/device/cuda_status.h"
#include "kernels/device/device_buffer.h"
#include "pkv/kernels/query_sample.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

constexpr double kLn2 = 0.69314718055994530942;

// Rows that stand `from_pitch` bytes apart, which are to stand side by side.
absl::Status KeepRows(void* to, const void* from, size_t row_bytes, size_t from_pitch,
                      int64_t count, cudaStream_t stream) {
  if (count == 0) return absl::OkStatus();
  if (count == 1) from_pitch = row_bytes;  // whatever a pitch may be at most
  return CudaStatus(cudaMemcpy2DAsync(to, row_bytes, from, from_pitch, row_bytes, count,
                                      cudaMemcpyDeviceToDevice, stream),
                    "keeping queries");
}

class QueryStatisticsCuda : public QueryStatistics {
 public:
  explicit QueryStatisticsCuda(const QueryStatisticsShape& shape)
      : shape_(shape),
        group_(shape.num_qo_heads / shape.num_kv_heads),
        query_size_(int64_t{shape.num_qo_heads} * shape.head_dim) {
    samples_.num_tiles = (QuerySample::kMaxSamples * group_ - 1) / kSampleTileRows + 1;
  }

  absl::Status Prepare(void* stream) {
    int device = 0;
    PKV_RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&device), "the current device"));
    PKV_RETURN_IF_ERROR(CudaStatus(
        cudaDeviceGetAttribute(&num_sms_, cudaDevAttrMultiProcessorCount, device), "its SMs"));
    PKV_RETURN_IF_ERROR(
        CudaStatus(PrepareKeyFeedback(shape_.head_dim), "key feedback's shared memory"));
    constexpr size_t kSamples = QuerySample::kMaxSamples;
    const size_t heads = shape_.num_qo_heads, query_bytes = query_size_ * sizeof(uint16_t);
    const size_t moments = size_t(shape_.num_kv_heads) * shape_.head_dim * shape_.head_dim;
    PKV_ASSIGN_OR_RETURN(sums_, DeviceBuffer::Make(moments * sizeof(float), stream));
    PKV_ASSIGN_OR_RETURN(weights_, DeviceBuffer::Make(moments, stream));
    PKV_ASSIGN_OR_RETURN(kept_samples_, DeviceBuffer::Make(kSamples * query_bytes, stream));
    PKV_ASSIGN_OR_RETURN(kept_lse_, DeviceBuffer::Make(kSamples * heads * sizeof(float), stream));
    const size_t tiles = size_t(shape_.num_kv_heads) * samples_.num_tiles;
    PKV_ASSIGN_OR_RETURN(tiles_,
                         DeviceBuffer::Make(tiles * SampleTileBytes(shape_.head_dim), stream));
    const size_t channels = size_t(shape_.num_kv_heads) * shape_.head_dim;
    PKV_ASSIGN_OR_RETURN(scales_, DeviceBuffer::Make(channels * sizeof(float), stream));
    PKV_ASSIGN_OR_RETURN(order_, DeviceBuffer::Make(channels, stream));
    samples_.tiles = tiles_.data();
    return absl::OkStatus();
  }

  absl::Status Start(int64_t first_token, int64_t end, const ComputeContext& ctx) override {
    PKV_RETURN_IF_ERROR(CheckQuerySpan(first_token, end));
    const size_t kept_bytes =
        MomentSample::Count(end - first_token) * query_size_ * sizeof(uint16_t);
    if (kept_.size() < kept_bytes) {
      PKV_ASSIGN_OR_RETURN(kept_, DeviceBuffer::Make(kept_bytes, ctx.stream));
    }
    if (first_token != first_token_ || end != end_) {
      const std::vector<int64_t> positions = SampledPositions(first_token, end);
      samples_.num_samples = static_cast<int>(positions.size());
      std::copy(positions.begin(), positions.end(), samples_.positions);
    }
    first_token_ = next_token_ = first_token;
    end_ = end;
    lacks_lse_ = is_summed_ = false;
    return absl::OkStatus();
  }

  absl::Status Add(const QueryChunk& chunk, const ComputeContext& ctx) override {
    PKV_RETURN_IF_ERROR(CheckQueryChunk(shape_, chunk, next_token_, end_));
    if (chunk.num_queries == 0) return absl::OkStatus();
    const auto stream = static_cast<cudaStream_t>(ctx.stream);
    PKV_RETURN_IF_ERROR(KeepMoments(chunk, stream));
    PKV_RETURN_IF_ERROR(KeepSamples(chunk, stream));
    next_token_ += chunk.num_queries;
    if (chunk.lse == nullptr) lacks_lse_ = true;
    return absl::OkStatus();
  }

  absl::Status Sum(const ComputeContext& ctx) override {
    if (next_token_ < end_) {
      return absl::FailedPreconditionError(
          absl::StrCat("queries up to ", next_token_, " of ", end_));
    }
    is_summed_ = first_token_ == end_;
    if (is_summed_) return absl::OkStatus();
    const KeptQueries kept = {
        .rows = kept_.As<uint16_t>(),
        .sample_rows = kept_samples_.As<uint16_t>(),
        .sample_lse = lacks_lse_ ? nullptr : kept_lse_.As<float>(),
        .num_queries = static_cast<int>(MomentSample::Count(end_ - first_token_)),
        .num_kv_heads = shape_.num_kv_heads,
        .group = group_,
        .head_dim = shape_.head_dim,
        .is_bfloat16 = shape_.query_type == QueryType::kBfloat16};
    // Of q.k, for a score in log2.
    const double scale = 1 / (std::sqrt(static_cast<double>(shape_.head_dim)) * kLn2);
    PKV_RETURN_IF_ERROR(
        CudaStatus(SumQueries(kept, static_cast<float>(scale), samples_, sums_.As<float>(),
                              static_cast<cudaStream_t>(ctx.stream)),
                   "moments of queries"));
    is_summed_ = true;
    return absl::OkStatus();
  }

  int64_t num_vectors() const override { return MomentSample::Count(end_ - first_token_) * group_; }
  int64_t moment_weight() const override {
    return MomentSample::Weight(end_ - first_token_) * group_;
  }
  const float* moment_sums() const override { return reinterpret_cast<const float*>(sums_.data()); }

  absl::Status ScoreSamples(const KvTensorView& kv, const ComputeContext& ctx) override {
    PKV_RETURN_IF_ERROR(CheckSummed());
    PKV_RETURN_IF_ERROR(CheckSampledKeys(shape_, kv, 0));
    if (kv.num_tokens < end_) {
      return absl::InvalidArgumentError(
          absl::StrCat("kv has ", kv.num_tokens, " tokens, queries stand up to ", end_));
    }
    if (!lacks_lse_) return absl::FailedPreconditionError("all queries came with their lse");
    PKV_RETURN_IF_ERROR(CudaStatus(
        SumScores({kv.k, kv.head_stride, kv.num_tokens, 0}, samples_, shape_.num_kv_heads, group_,
                  shape_.head_dim, static_cast<cudaStream_t>(ctx.stream)),
        "scores of sampled queries"));
    lacks_lse_ = false;
    return absl::OkStatus();
  }

  absl::Status Importance(const KvTensorView& kv, int64_t first_token, float* importance,
                          const ComputeContext& ctx) override {
    PKV_RETURN_IF_ERROR(CheckSummed());
    PKV_RETURN_IF_ERROR(CheckSampledKeys(shape_, kv, first_token));
    PKV_RETURN_IF_ERROR(CheckImportance(kv, importance));
    if (lacks_lse_) return absl::FailedPreconditionError("queries have no lse yet");
    return CudaStatus(
        SumImportance({kv.k, kv.head_stride, kv.num_tokens, static_cast<int>(first_token)},
                      samples_, shape_.num_kv_heads, group_, shape_.head_dim, num_sms_, importance,
                      static_cast<cudaStream_t>(ctx.stream)),
        "importance of tokens");
  }

  absl::StatusOr<DeviceKeyFeedback> Feedback(bool is_rotated, double damping,
                                             const ComputeContext& ctx) override {
    PKV_RETURN_IF_ERROR(CheckSummed());
    if (!(damping > 0)) {
      return absl::InvalidArgumentError(absl::StrCat("damping ", damping, " is not above 0"));
    }
    if (num_vectors() == 0) return DeviceKeyFeedback{};
    const KeyFeedbackLaunch launch = {.moment_sums = moment_sums(),
                                      .inverse_weight = 1.0f / static_cast<float>(moment_weight()),
                                      .is_rotated = is_rotated,
                                      .damping = damping,
                                      .order = order_.As<uint8_t>(),
                                      .weights = weights_.As<int8_t>(),
                                      .scales = scales_.As<float>()};
    PKV_RETURN_IF_ERROR(CudaStatus(EnqueueKeyFeedback(launch, shape_.num_kv_heads, shape_.head_dim,
                                                      static_cast<cudaStream_t>(ctx.stream)),
                                   "key feedback"));
    return DeviceKeyFeedback{launch.order, launch.weights, launch.scales};
  }

 private:
  absl::Status CheckSummed() const {
    if (is_summed_) return absl::OkStatus();
    return absl::FailedPreconditionError("queries were not summed up");
  }

  absl::Status KeepMoments(const QueryChunk& chunk, cudaStream_t stream) {
    const int64_t begin = chunk.first_token - first_token_, end = begin + chunk.num_queries;
    const auto* q = static_cast<const uint16_t*>(chunk.q);
    uint16_t* to = kept_.As<uint16_t>() + MomentSample::Count(begin) * query_size_;
    for (MomentSample::Run run = {.end = begin}; run.end < end; to += run.count * query_size_) {
      run = MomentSample::FirstRun(run.end, end);
      PKV_RETURN_IF_ERROR(
          KeepRows(to, q + (run.first - begin) * chunk.q_stride, query_size_ * sizeof(uint16_t),
                   run.stride * chunk.q_stride * sizeof(uint16_t), run.count, stream));
    }
    return absl::OkStatus();
  }

  // Samples at one distance from each other are one copy.
  absl::Status KeepSamples(const QueryChunk& chunk, cudaStream_t stream) {
    const int32_t* positions = samples_.positions;
    const int32_t* all_end = positions + samples_.num_samples;
    const int32_t* end =
        std::lower_bound(positions, all_end, chunk.first_token + chunk.num_queries);
    for (const int32_t* run = std::lower_bound(positions, all_end, chunk.first_token); run < end;) {
      const int64_t stride = run + 1 < end ? run[1] - run[0] : 1;
      const int32_t* run_end = run + 1;
      while (run_end < end && run_end[0] - run_end[-1] == stride) ++run_end;
      PKV_RETURN_IF_ERROR(KeepSampleRun(chunk, static_cast<int>(run - positions),
                                        static_cast<int>(run_end - run), stride, stream));
      run = run_end;
    }
    return absl::OkStatus();
  }
  absl::Status KeepSampleRun(const QueryChunk& chunk, int sample, int count, int64_t stride,
                             cudaStream_t stream) {
    const int64_t query = samples_.positions[sample] - chunk.first_token;
    PKV_RETURN_IF_ERROR(KeepRows(kept_samples_.As<uint16_t>() + sample * query_size_,
                                 static_cast<const uint16_t*>(chunk.q) + query * chunk.q_stride,
                                 query_size_ * sizeof(uint16_t),
                                 stride * chunk.q_stride * sizeof(uint16_t), count, stream));
    if (chunk.lse == nullptr) return absl::OkStatus();
    const int64_t heads = shape_.num_qo_heads;
    return KeepRows(kept_lse_.As<float>() + sample * heads, chunk.lse + query * heads,
                    heads * sizeof(float), stride * heads * sizeof(float), count, stream);
  }

  const QueryStatisticsShape shape_;
  const int group_;
  const int64_t query_size_;  // elements, of all heads
  int num_sms_ = 1;
  int64_t first_token_ = 0, next_token_ = 0, end_ = 0;
  bool lacks_lse_ = false;  // until ScoreSamples()
  bool is_summed_ = false;
  QuerySampleRows samples_;
  DeviceBuffer kept_;                     // [MomentSample::Count()][qo_head][head_dim], 16 bits
  DeviceBuffer kept_samples_, kept_lse_;  // [sample][qo_head][head_dim], [sample][qo_head]
  DeviceBuffer sums_, tiles_, weights_, scales_, order_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<QueryStatistics>> MakeQueryStatisticsCuda(
    const QueryStatisticsShape& shape, const ComputeContext& ctx) {
  auto statistics = std::make_unique<QueryStatisticsCuda>(shape);
  PKV_RETURN_IF_ERROR(statistics->Prepare(ctx.stream));
  return statistics;
}

}  // namespace pkv
