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

// Of a CTA's part, at least: it writes as many bytes as eight tiles have.
constexpr int kPartTiles = 4;
constexpr double kLn2 = 0.69314718055994530942;

class QueryStatisticsCuda : public QueryStatistics {
 public:
  explicit QueryStatisticsCuda(const QueryStatisticsShape& shape)
      : shape_(shape),
        group_(shape.num_qo_heads / shape.num_kv_heads),
        moment_size_(size_t(shape.num_kv_heads) * shape.head_dim * shape.head_dim),
        sample_rows_(size_t(shape.num_kv_heads) * QuerySample::kMaxSamples * group_),
        next_token_(shape.num_layers),
        lacks_lse_(shape.num_layers) {
    samples_.capacity = QuerySample::kMaxSamples * group_;
  }

  absl::Status Prepare(void* stream) {
    int device = 0, num_sms = 0;
    PKV_RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&device), "the current device"));
    PKV_RETURN_IF_ERROR(CudaStatus(
        cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device), "its SMs"));
    PKV_RETURN_IF_ERROR(
        CudaStatus(PrepareKeyFeedback(shape_.head_dim), "key feedback's shared memory"));
    // Two CTAs of moments fit an SM.
    max_parts_ = std::max(1, 2 * num_sms / shape_.num_kv_heads);
    const size_t layers = shape_.num_layers, floats = sizeof(float);
    PKV_ASSIGN_OR_RETURN(sums_, DeviceBuffer::Make(layers * moment_size_ * floats, stream));
    PKV_ASSIGN_OR_RETURN(partials_, DeviceBuffer::Make(max_parts_ * moment_size_ * floats, stream));
    PKV_ASSIGN_OR_RETURN(
        sample_q_,
        DeviceBuffer::Make(layers * sample_rows_ * shape_.head_dim * sizeof(uint16_t), stream));
    PKV_ASSIGN_OR_RETURN(sample_terms_,
                         DeviceBuffer::Make(layers * sample_rows_ * sizeof(SampleTerms), stream));
    PKV_ASSIGN_OR_RETURN(weights_, DeviceBuffer::Make(moment_size_, stream));
    PKV_ASSIGN_OR_RETURN(
        scales_,
        DeviceBuffer::Make(size_t(shape_.num_kv_heads) * shape_.head_dim * floats, stream));
    PKV_ASSIGN_OR_RETURN(order_,
                         DeviceBuffer::Make(size_t(shape_.num_kv_heads) * shape_.head_dim, stream));
    return absl::OkStatus();
  }

  absl::Status Start(int64_t first_token, int64_t end, const ComputeContext& ctx) override {
    PKV_RETURN_IF_ERROR(CheckQuerySpan(first_token, end));
    const std::vector<int64_t> positions = SampledPositions(first_token, end);
    samples_.num_samples = static_cast<int>(positions.size());
    std::copy(positions.begin(), positions.end(), samples_.positions);
    first_token_ = first_token;
    end_ = end;
    std::fill(next_token_.begin(), next_token_.end(), first_token);
    std::fill(lacks_lse_.begin(), lacks_lse_.end(), false);
    return CudaStatus(
        cudaMemsetAsync(sums_.data(), 0, sums_.size(), static_cast<cudaStream_t>(ctx.stream)),
        "clearing moments");
  }

  absl::Status Add(const QueryChunk& chunk, const ComputeContext& ctx) override {
    PKV_RETURN_IF_ERROR(CheckQueryLayer(shape_, chunk.layer));
    PKV_RETURN_IF_ERROR(CheckQueryChunk(shape_, chunk, next_token_[chunk.layer], end_));
    if (chunk.num_queries == 0) return absl::OkStatus();
    const auto stream = static_cast<cudaStream_t>(ctx.stream);
    const QueryRows rows = {.q = static_cast<const uint16_t*>(chunk.q),
                            .q_stride = chunk.q_stride,
                            .num_queries = chunk.num_queries,
                            .num_kv_heads = shape_.num_kv_heads,
                            .group = group_,
                            .head_dim = shape_.head_dim,
                            .is_bfloat16 = shape_.query_type == QueryType::kBfloat16};
    const int64_t next = chunk.first_token + chunk.num_queries;
    const auto runs = MomentSample::Of(first_token_, chunk.first_token, next);
    PKV_RETURN_IF_ERROR(AddRun(chunk, rows, runs.all, stream));
    PKV_RETURN_IF_ERROR(AddRun(chunk, rows, runs.rest, stream));
    const int32_t* begin = samples_.positions;
    const int32_t* end = begin + samples_.num_samples;
    const auto from = std::lower_bound(begin, end, chunk.first_token) - begin;
    const auto to = std::lower_bound(begin, end, next) - begin;
    PKV_RETURN_IF_ERROR(CudaStatus(
        TakeSamples(rows, chunk.lse, static_cast<int>(chunk.first_token), ScoreScale(),
                    static_cast<int>(from), static_cast<int>(to), SamplesOf(chunk.layer), stream),
        "sampling queries"));
    next_token_[chunk.layer] = next;
    if (chunk.lse == nullptr) lacks_lse_[chunk.layer] = true;
    return absl::OkStatus();
  }

  int64_t num_vectors(int layer) const override {
    return MomentSample::Of(first_token_, first_token_, next_token_[layer]).count() * group_;
  }
  int64_t moment_weight(int layer) const override {
    return MomentSample::Of(first_token_, first_token_, next_token_[layer]).weight() * group_;
  }
  const float* moment_sums(int layer) const override {
    return reinterpret_cast<const float*>(sums_.data()) + layer * moment_size_;
  }

  absl::Status ScoreSamples(int layer, const KvTensorView& kv, const ComputeContext& ctx) override {
    PKV_RETURN_IF_ERROR(CheckQueryLayer(shape_, layer));
    PKV_RETURN_IF_ERROR(CheckSampledKeys(shape_, kv, 0));
    if (kv.num_tokens < next_token_[layer]) {
      return absl::InvalidArgumentError(absl::StrCat("kv has ", kv.num_tokens, " tokens, layer ",
                                                     layer, " queries up to ", next_token_[layer]));
    }
    if (!lacks_lse_[layer]) {
      return absl::FailedPreconditionError(absl::StrCat("layer ", layer, " came with its lse"));
    }
    lacks_lse_[layer] = false;
    return CudaStatus(
        SumScores({kv.k, kv.head_stride, kv.num_tokens, 0}, SamplesOf(layer), shape_.num_kv_heads,
                  group_, shape_.head_dim, static_cast<cudaStream_t>(ctx.stream)),
        "scores of sampled queries");
  }

  absl::Status Importance(int layer, const KvTensorView& kv, int64_t first_token, float* importance,
                          const ComputeContext& ctx) override {
    PKV_RETURN_IF_ERROR(CheckQueryLayer(shape_, layer));
    PKV_RETURN_IF_ERROR(CheckSampledKeys(shape_, kv, first_token));
    PKV_RETURN_IF_ERROR(CheckImportance(kv, importance));
    if (lacks_lse_[layer]) {
      return absl::FailedPreconditionError(absl::StrCat("layer ", layer, " has no lse yet"));
    }
    return CudaStatus(
        SumImportance({kv.k, kv.head_stride, kv.num_tokens, static_cast<int>(first_token)},
                      SamplesOf(layer), shape_.num_kv_heads, group_, shape_.head_dim, importance,
                      static_cast<cudaStream_t>(ctx.stream)),
        "importance of tokens");
  }

  absl::StatusOr<DeviceKeyFeedback> Feedback(int layer, bool is_rotated, double damping,
                                             const ComputeContext& ctx) override {
    PKV_RETURN_IF_ERROR(CheckQueryLayer(shape_, layer));
    if (!(damping > 0)) {
      return absl::InvalidArgumentError(absl::StrCat("damping ", damping, " is not above 0"));
    }
    if (num_vectors(layer) == 0) return DeviceKeyFeedback{};
    const KeyFeedbackLaunch launch = {
        .moment_sums = moment_sums(layer),
        .inverse_weight = 1.0f / static_cast<float>(moment_weight(layer)),
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
  absl::Status AddRun(const QueryChunk& chunk, const QueryRows& queries,
                      const MomentSample::Run& run, cudaStream_t stream) {
    if (run.count == 0) return absl::OkStatus();
    const MomentRows rows = {.queries = queries,
                             .first = static_cast<int>(run.first - chunk.first_token),
                             .stride = run.stride,
                             .count = static_cast<int>(run.count)};
    const int num_tiles = (rows.num_rows() + kMomentTileRows - 1) / kMomentTileRows;
    const int num_parts = std::min(max_parts_, (num_tiles + kPartTiles - 1) / kPartTiles);
    return CudaStatus(
        AddMoments(rows, num_parts, partials_.As<float>(), SumsOf(chunk.layer), stream),
        "moments of queries");
  }

  float* SumsOf(int layer) { return sums_.As<float>() + layer * moment_size_; }
  float ScoreScale() const {
    return static_cast<float>(1 / (std::sqrt(static_cast<double>(shape_.head_dim)) * kLn2));
  }
  QuerySampleRows SamplesOf(int layer) {
    QuerySampleRows samples = samples_;
    samples.q = sample_q_.As<uint16_t>() + layer * sample_rows_ * shape_.head_dim;
    samples.terms = sample_terms_.As<SampleTerms>() + layer * sample_rows_;
    return samples;
  }

  const QueryStatisticsShape shape_;
  const int group_;
  const size_t moment_size_, sample_rows_;  // of a layer
  int max_parts_ = 1;
  int64_t first_token_ = 0, end_ = 0;
  std::vector<int64_t> next_token_;  // [layer]
  std::vector<bool> lacks_lse_;      // [layer]: until ScoreSamples()
  QuerySampleRows samples_;          // positions alone
  DeviceBuffer sums_, partials_, sample_q_, sample_terms_, weights_, scales_, order_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<QueryStatistics>> MakeQueryStatisticsCuda(
    const QueryStatisticsShape& shape, const ComputeContext& ctx) {
  auto statistics = std::make_unique<QueryStatisticsCuda>(shape);
  PKV_RETURN_IF_ERROR(statistics->Prepare(ctx.stream));
  PKV_RETURN_IF_ERROR(statistics->Start(0, 0, ctx));
  return statistics;
}

}  // namespace pkv
