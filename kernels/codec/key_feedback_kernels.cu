// Order and weights of error feedback from the queries' second moments: key_feedback.cc on the
// device. One CTA a kv head; four lanes a row of the matrix.
//
// Rotation, order, trace and damping are key_feedback.cc's, operation by operation. The factor is
// in binary64 too, its sums in another order: weights differ by a few units of 2^-53 times the
// matrix's condition, which damping keeps below head_dim / damping.

#include "kernels/codec/key_feedback_kernels.h"

#include <cmath>

namespace pkv {
namespace {

constexpr int kRowLanes = 4;

template <int kHeadDim>
struct FeedbackMemory {
  // The four lanes of four rows, which a half warp reads together, start in different banks.
  static constexpr int kStride = kHeadDim + 4;
  double factor[kHeadDim * kStride];        // in step order
  float moment[kHeadDim * (kHeadDim + 1)];  // in channel order
  double damped, inverse_pivot;
  int order[kHeadDim];
  int is_unusable;
};

template <int kHeadDim>
class FeedbackCta {
 public:
  static constexpr int kThreads = kRowLanes * kHeadDim;
  using Memory = FeedbackMemory<kHeadDim>;

  __device__ FeedbackCta(const KeyFeedbackLaunch& launch, float norm, Memory& memory)
      : launch_(launch),
        norm_(norm),
        memory_(memory),
        thread_(threadIdx.x),
        row_(threadIdx.x / kRowLanes),
        lane_(threadIdx.x % kRowLanes) {}

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
    if (memory_.is_unusable == 0) Factor();
    Write();
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

  // RotateRow() of vectors whose elements are `step` apart, and which start `next` apart.
  __device__ void RotateAlong(int step, int next) {
    constexpr int kPairs = kHeadDim * kHeadDim / 2;
    for (int half = 1; half < kHeadDim; half *= 2) {
      for (int i = thread_; i < kPairs; i += kThreads) {
        const int pair = i % (kHeadDim / 2), vector = i / (kHeadDim / 2);
        const int first = pair / half * 2 * half + pair % half;
        float* at = memory_.moment + vector * next + first * step;
        const float a = at[0], b = at[half * step];
        at[0] = __fadd_rn(a, b);
        at[half * step] = __fsub_rn(a, b);
      }
      __syncthreads();
    }
    for (int i = thread_; i < kHeadDim * kHeadDim; i += kThreads) {
      float& x = memory_.moment[i / kHeadDim * kMomentStride + i % kHeadDim];
      x = __fmul_rn(x, norm_);
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
      memory_.damped = __ddiv_rn(__dmul_rn(launch_.damping, trace), kHeadDim);
      if (!(trace > 0)) memory_.is_unusable = 1;
    }
    __syncthreads();
  }

  __device__ void Damp() {
    if (memory_.is_unusable != 0) return;
    for (int i = thread_; i < kHeadDim * kHeadDim; i += kThreads) {
      const int row = i / kHeadDim, column = i % kHeadDim;
      double value = memory_.moment[memory_.order[row] * kMomentStride + memory_.order[column]];
      if (row == column) value = __dadd_rn(value, memory_.damped);
      memory_.factor[row * Memory::kStride + column] = value;
    }
    __syncthreads();
  }

  // FactorFromTheEnd(): column by column, each row's sum by its four lanes; one reciprocal square
  // root a column stands for its root and its quotients.
  __device__ void Factor() {
    double* own = memory_.factor + row_ * Memory::kStride;
    for (int k = kHeadDim - 1; k >= 0; --k) {
      const double* pivot_row = memory_.factor + k * Memory::kStride;
      double sum = 0;
      if (row_ <= k) {
#pragma unroll 8
        for (int m = k + 1 + lane_; m < kHeadDim; m += kRowLanes) sum += own[m] * pivot_row[m];
      }
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      sum = own[k] - sum;
      if (row_ == k && lane_ == 0) {
        if (!(sum > 0)) memory_.is_unusable = 1;
        memory_.inverse_pivot = rsqrt(sum);
      }
      __syncthreads();
      if (memory_.is_unusable != 0) return;
      if (row_ <= k && lane_ == 0) own[k] = sum * memory_.inverse_pivot;
      __syncthreads();
    }
  }

  __device__ void Write() const {
    const bool is_usable = memory_.is_unusable == 0;
    if (thread_ < kHeadDim) {
      launch_.order[int64_t{blockIdx.x} * kHeadDim + thread_] =
          static_cast<uint8_t>(is_usable ? memory_.order[thread_] : thread_);
    }
    float* weights = launch_.weights + int64_t{blockIdx.x} * kHeadDim * kHeadDim;
    for (int i = thread_; i < kHeadDim * kHeadDim; i += kThreads) {
      const int step = i / kHeadDim, earlier = i % kHeadDim;
      float weight = 0;
      if (is_usable && earlier < step) {
        weight = static_cast<float>(memory_.factor[earlier * Memory::kStride + step] /
                                    memory_.factor[step * (Memory::kStride + 1)]);
      }
      weights[i] = weight;
    }
  }

  const KeyFeedbackLaunch& launch_;
  const float norm_;
  Memory& memory_;
  const int thread_, row_, lane_;
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
