// Order and weights of error feedback from the queries' second moments: key_feedback.cc on the
// device. One CTA a kv head.
//
// Rotation, order, trace and damping are key_feedback.cc's, operation by operation. Elimination is
// in binary64 too, its sums in another order: before they are rounded to bytes, weights differ by a
// few units of 2^-53 times the matrix's condition, which damping keeps below head_dim / damping.

#include "kernels/codec/key_feedback_kernels.h"
#include "kernels/codec/key_feedback_math.h"
#include "pkv/kernels/key_feedback.h"

#include <cmath>

namespace pkv {
namespace {

constexpr int kRun = kFeedbackRun;
constexpr int kTile = 4;  // rows and columns of the moment that a thread changes at a time

template <int kHeadDim>
struct FeedbackMemory {
  // Rows start in different banks.
  static constexpr int kStride = kHeadDim + 4;
  double damped[kHeadDim * kStride];  // in step order; what is left of it
  double weights[kRun][kHeadDim];     // of the run that is eliminated, by earlier step
  double inverse[kRun][kRun];
  float moment[kHeadDim * (kHeadDim + 1)];  // in channel order
  double damping;
  int order[kHeadDim];
  int is_unusable;
};

template <int kHeadDim>
class FeedbackCta {
 public:
  static constexpr int kThreads = 4 * kHeadDim;
  using Memory = FeedbackMemory<kHeadDim>;

  __device__ FeedbackCta(const KeyFeedbackLaunch& launch, float norm, Memory& memory)
      : launch_(launch), norm_(norm), memory_(memory), thread_(threadIdx.x) {}

  __device__ void Run() {
    if (thread_ == 0) memory_.is_unusable = 0;
    __syncthreads();
    LoadMean();
    if (launch_.is_rotated) {
      RotateAlong(1, kMomentStride);  // rows
      RotateAlong(kMomentStride, 1);  // columns
    }
    CheckFinite();
    SortChannels();
    Damp();
    const bool is_usable = memory_.is_unusable == 0;
    __syncthreads();  // FindWeights() may write it
    if (is_usable) FindWeights();
    if (memory_.is_unusable != 0) WriteNone();
  }

 private:
  static constexpr int kMomentStride = kHeadDim + 1;

  __device__ void LoadMean() {
    const float* sums = launch_.moment_sums + int64_t{blockIdx.x} * kHeadDim * kHeadDim;
    for (int i = thread_; i < kHeadDim * kHeadDim; i += kThreads) {
      memory_.moment[i / kHeadDim * kMomentStride + i % kHeadDim] =
          __fmul_rn(sums[i], launch_.inverse_weight);
    }
    __syncthreads();
  }

  // RotateRow() of vectors whose elements are `step` apart, and which start `next` apart: the same
  // operations, three or four stages of the butterfly at a time in registers.
  __device__ void RotateAlong(int step, int next) {
    RotateStages<8, 1>(step, next, 1.0f);
    RotateStages<kHeadDim / 8, 8>(step, next, norm_);
  }

  // The stages of which kCount elements, kApart from one another, know nothing of the rest.
  template <int kCount, int kApart>
  __device__ void RotateStages(int step, int next, float norm) {
    for (int i = thread_; i < kHeadDim * kHeadDim / kCount; i += kThreads) {
      const int part = i % (kHeadDim / kCount), vector = i / (kHeadDim / kCount);
      const int first = kApart == 1 ? part * kCount : part;
      float* at = memory_.moment + vector * next + first * step;
      float x[kCount];
#pragma unroll
      for (int j = 0; j < kCount; ++j) x[j] = at[j * kApart * step];
#pragma unroll
      for (int half = 1; half < kCount; half *= 2) {
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          if ((j & half) != 0) continue;
          const float a = x[j], b = x[j + half];
          x[j] = __fadd_rn(a, b);
          x[j + half] = __fsub_rn(a, b);
        }
      }
#pragma unroll
      for (int j = 0; j < kCount; ++j) at[j * kApart * step] = __fmul_rn(x[j], norm);
    }
    __syncthreads();
  }

  __device__ void CheckFinite() {
    for (int i = thread_; i < kHeadDim * kHeadDim; i += kThreads) {
      if (!isfinite(memory_.moment[i / kHeadDim * kMomentStride + i % kHeadDim])) {
        memory_.is_unusable = 1;
      }
    }
    __syncthreads();
  }

  __device__ float Diagonal(int i) const { return memory_.moment[i * (kMomentStride + 1)]; }

  // Largest first, equal ones as they stand.
  __device__ void SortChannels() {
    if (thread_ < kHeadDim) {
      const float own = Diagonal(thread_);
      int before = 0;
      for (int i = 0; i < kHeadDim; ++i) {
        const float other = Diagonal(i);
        if (other > own || (other == own && i < thread_)) ++before;
      }
      memory_.order[before] = thread_;
    } else if (thread_ == kHeadDim) {
      double trace = 0;
      for (int i = 0; i < kHeadDim; ++i) trace += Diagonal(i);
      memory_.damping = __ddiv_rn(__dmul_rn(launch_.damping, trace), kHeadDim);
      if (!(trace > 0)) memory_.is_unusable = 1;
    }
    __syncthreads();
  }

  __device__ void Damp() {
    if (memory_.is_unusable != 0) return;
    for (int i = thread_; i < kHeadDim * kHeadDim; i += kThreads) {
      const int row = i / kHeadDim, column = i % kHeadDim;
      double value = memory_.moment[memory_.order[row] * kMomentStride + memory_.order[column]];
      if (row == column) value = __dadd_rn(value, memory_.damping);
      Damped(row, column) = value;
    }
    __syncthreads();
  }

  // FindWeights(), run by run from the last; each run's weights are written as they are found.
  __device__ void FindWeights() {
    for (int run = kHeadDim - kRun; run >= 0; run -= kRun) {
      if (thread_ < 32) InvertRun(run);
      __syncthreads();
      if (memory_.is_unusable != 0) return;
      const int step = thread_ / 32 % kRun;
      for (int earlier = thread_ / (32 * kRun) * 32 + thread_ % 32; earlier < run;
           earlier += kThreads / kRun) {
        double sum = 0;
#pragma unroll
        for (int m = 0; m < kRun; ++m) {
          sum += memory_.inverse[step][m] * Damped(run + m, earlier);
        }
        memory_.weights[step][earlier] = sum;
      }
      __syncthreads();
      Eliminate(run);
      if (thread_ / 32 < kRun) WriteStep(run + thread_ / 32, run);
      __syncthreads();
    }
  }

  // Invert() by a warp: a lane has two columns of a row.
  __device__ void InvertRun(int run) {
    const int row = thread_ / 4, column = thread_ % 4 * 2;
    double x[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      x[j] = Damped(run + max(row, column + j), run + min(row, column + j));
    }
    bool is_definite = true;
#pragma unroll
    for (int k = 0; k < kRun; ++k) {
      const double pivot = __shfl_sync(~0u, x[k % 2], k * 4 + k / 2);
      const double factor = __shfl_sync(~0u, x[k % 2], row * 4 + k / 2);
      is_definite = is_definite && pivot > 0;
      const double inverse = 1 / pivot;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const bool is_pivots = column + j == k;
        const double in_row = __shfl_sync(~0u, x[j], k * 4 + thread_ % 4);
        const double of_row = is_pivots ? inverse : in_row * inverse;
        const double own = is_pivots ? 0 : x[j];
        x[j] = row == k ? of_row : own - factor * of_row;
      }
    }
    memory_.inverse[row][column] = x[0];
    memory_.inverse[row][column + 1] = x[1];
    if (!is_definite) memory_.is_unusable = 1;
  }

  // Takes what the run explains away from the steps before it: 4 x 4 elements a thread, those of
  // the lower half and of the tiles on the diagonal.
  __device__ void Eliminate(int run) {
    const int tiles = run / kTile, count = tiles * (tiles + 1) / 2;
    for (int i = thread_; i < count; i += kThreads) {
      int tile_row = static_cast<int>((sqrtf(8.0f * static_cast<float>(i) + 1) - 1) / 2);
      while (tile_row * (tile_row + 1) / 2 > i) --tile_row;
      while ((tile_row + 1) * (tile_row + 2) / 2 <= i) ++tile_row;
      const int first_row = tile_row * kTile;
      const int first_column = (i - tile_row * (tile_row + 1) / 2) * kTile;
      double sums[kTile][kTile] = {};
#pragma unroll 2
      for (int m = 0; m < kRun; ++m) {
        double of_row[kTile], of_column[kTile];
#pragma unroll
        for (int j = 0; j < kTile; ++j) {
          of_row[j] = Damped(run + m, first_row + j);
          of_column[j] = memory_.weights[m][first_column + j];
        }
#pragma unroll
        for (int a = 0; a < kTile; ++a) {
#pragma unroll
          for (int b = 0; b < kTile; ++b) sums[a][b] += of_row[a] * of_column[b];
        }
      }
#pragma unroll
      for (int a = 0; a < kTile; ++a) {
#pragma unroll
        for (int b = 0; b < kTile; ++b) Damped(first_row + a, first_column + b) -= sums[a][b];
      }
    }
  }

  // The weights of a step as KeyFeedback has them, by a warp; of the first `num_earlier` steps.
  __device__ void WriteStep(int step, int num_earlier) {
    const int lane = thread_ % 32;
    double largest = 0;
    for (int j = lane; j < num_earlier; j += 32) {
      largest = fmax(largest, fabs(memory_.weights[step % kRun][j]));
    }
#pragma unroll
    for (int half = 16; half >= 1; half /= 2) {
      largest = fmax(largest, __shfl_xor_sync(~0u, largest, half));
    }
    const float wanted = static_cast<float>(largest / kMaxFeedbackWeight);
    const float scale = wanted >= kLeastFeedbackScale ? wanted : 0.0f;
    const int64_t at = int64_t{blockIdx.x} * kHeadDim + step;
    for (int j = lane; j < kHeadDim; j += 32) {
      int weight = 0;
      if (j < num_earlier && scale > 0) {
        weight = __double2int_rn(memory_.weights[step % kRun][j] / scale);
      }
      launch_.weights[at * kHeadDim + j] = static_cast<int8_t>(weight);
    }
    if (lane != 0) return;
    launch_.scales[at] = scale;
    launch_.order[at] = static_cast<uint8_t>(memory_.order[step]);
  }

  __device__ void WriteNone() const {
    const int64_t first = int64_t{blockIdx.x} * kHeadDim;
    for (int i = thread_; i < kHeadDim * kHeadDim; i += kThreads) {
      launch_.weights[first * kHeadDim + i] = 0;
    }
    if (thread_ >= kHeadDim) return;
    launch_.scales[first + thread_] = 0;
    launch_.order[first + thread_] = static_cast<uint8_t>(thread_);
  }

  // Row `row`, column `column` of the lower half of what is left of the damped moment.
  __device__ double& Damped(int row, int column) {
    return memory_.damped[row * Memory::kStride + column];
  }

  const KeyFeedbackLaunch& launch_;
  const float norm_;
  Memory& memory_;
  const int thread_;
};

template <int kHeadDim>
__global__ void __launch_bounds__(FeedbackCta<kHeadDim>::kThreads)
    KeyFeedbackKernel(const __grid_constant__ KeyFeedbackLaunch launch, float norm) {
  extern __shared__ __align__(16) char memory[];
  FeedbackCta<kHeadDim>(launch, norm, *reinterpret_cast<FeedbackMemory<kHeadDim>*>(memory)).Run();
}

template <int kHeadDim>
cudaError_t Prepare() {
  return cudaFuncSetAttribute(KeyFeedbackKernel<kHeadDim>,
                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                              sizeof(FeedbackMemory<kHeadDim>));
}

template <int kHeadDim>
cudaError_t Enqueue(const KeyFeedbackLaunch& launch, int num_kv_heads, cudaStream_t stream) {
  // As RotateRows() has it.
  const float norm = 1.0f / std::sqrt(static_cast<float>(kHeadDim));
  KeyFeedbackKernel<kHeadDim>
      <<<num_kv_heads, FeedbackCta<kHeadDim>::kThreads, sizeof(FeedbackMemory<kHeadDim>), stream>>>(
          launch, norm);
  return cudaGetLastError();
}

}  // namespace

cudaError_t PrepareKeyFeedback(int head_dim) {
  return head_dim == 64 ? Prepare<64>() : Prepare<128>();
}

cudaError_t EnqueueKeyFeedback(const KeyFeedbackLaunch& launch, int num_kv_heads, int head_dim,
                               cudaStream_t stream) {
  return head_dim == 64 ? Enqueue<64>(launch, num_kv_heads, stream)
                        : Enqueue<128>(launch, num_kv_heads, stream);
}

}  // namespace pkv
