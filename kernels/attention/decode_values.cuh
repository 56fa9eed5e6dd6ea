#ifndef PKV_KERNELS_ATTENTION_DECODE_VALUES_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_VALUES_CUH_

// V of a block of codes: weights times codes, zero points and patterns.

#include "kernels/attention/decode_block.cuh"

namespace pkv {

template <typename C>
struct ValueMath {
  using State = WarpState<C>;
  static constexpr int kTiles = C::kTiles;

  State& state;
  const BlockParams& params;

  // B operands of V's codes of one V group, and its sum of weight times zero point; with the first
  // group the sum of weights and the histogram of patterns.
  template <int kGroup>
  __device__ __forceinline__ void PrepareGroup(int group, const WeightTile<C> (&weights)[kTiles],
                                               uint32_t (&b)[2 * kTiles]) const {
    uint32_t scales[kTiles], plain[C::kWide ? 2 * kTiles : 1];
    LoadVScales(params, group, state.g, scales);
    float zeros[2][4], sums[4];
    State::ClearTile(zeros[0]), State::ClearTile(zeros[1]), State::ClearTile(sums);
#pragma unroll
    for (int i = 0; i < kTiles; i += 2) {
#pragma unroll
      for (int t = i; t < i + 2; ++t) {
        const uint32_t weight = (C::Weight(t, 0) & 0xffffu) | (C::Weight(t, 1) & 0xffff0000u);
        const uint2 scaled = weights[t].Scaled(weight, scales[t]);
        b[OperandPlace(t, 0)] = scaled.x, b[OperandPlace(t, 1)] = scaled.y;
        if constexpr (C::kWide) {
          const uint2 row = weights[t].Plain();
          plain[OperandPlace(t, 0)] = row.x, plain[OperandPlace(t, 1)] = row.y;
        }
      }
      const uint32_t* p = (C::kWide ? plain : b) + 2 * i;
      const uint4 zero =
          LoadColumns(params.v_zeros + group * 2 * kBlockTokens, kBlockTokens, state.q, i / 2);
      ptx::Mma(zeros[0], zero.x, zero.y, zero.z, zero.w, p[0], p[1]);
      ptx::Mma(zeros[1], zero.x, zero.y, zero.z, zero.w, p[2], p[3]);
      if constexpr (kGroup == 0) {
        ptx::Mma(sums, kOnes, kOnes, kOnes, kOnes, p[0], p[1]);
        ptx::Mma(sums, kOnes, kOnes, kOnes, kOnes, p[2], p[3]);
      }
    }
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) {
      const int column = C::kWide ? h : 1;
      state.zero_sum[kGroup][h] += zeros[0][column] + zeros[1][2 + column];
      if constexpr (kGroup == 0) state.sum[h] += sums[column];
    }
    if constexpr (kGroup == 0) {
      const uint32_t* p = C::kWide ? plain : b;
      if (state.num_v_patterns > 0) AddToHistogram<0>(p);
      if (state.num_v_patterns > 32) AddToHistogram<2>(p);
#pragma unroll 1
      for (int id = C::kRegisterPatterns; id < state.num_v_patterns; id += 32) AddToMany(id, p);
    }
  }

  // The weights of 32 V patterns from `first` on: their ids' one-hot rows times weights.
  __device__ __forceinline__ void SumPatterns(int first_id, const uint32_t* plain,
                                              float (&acc)[2][4]) const {
    State::ClearTile(acc[0]), State::ClearTile(acc[1]);
    // 0x6400 + id is 1024 + id in fp16.
    const uint32_t row = (0x6400u + first_id + state.g) * 0x10001u;
#pragma unroll
    for (int i = 0; i < kTiles; i += 4) {
      const uint4 four = ptx::LoadShared128(params.v_ids + state.q * 32 + 4 * i);
      const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int k = 0; k < 4; k += 2) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int selector = half == 0 ? 0x4140 : 0x4342;
          const uint32_t low = __byte_perm(words[k], 0x64646464u, selector);
          const uint32_t high = __byte_perm(words[k + 1], 0x64646464u, selector);
          const uint32_t* p = plain + 2 * (i + k) + 2 * half;
#pragma unroll
          for (int tile = 0; tile < 2; ++tile) {
            const uint32_t first = row + 16 * tile * 0x10001u, second = first + 8 * 0x10001u;
            ptx::Mma(acc[tile], ptx::EqualHalf2(low, first), ptx::EqualHalf2(low, second),
                     ptx::EqualHalf2(high, first), ptx::EqualHalf2(high, second), p[0], p[1]);
          }
        }
      }
    }
  }
  template <int kTile>
  __device__ __forceinline__ void AddToHistogram(const uint32_t* plain) const {
    float acc[2][4];
    SumPatterns(16 * kTile, plain, acc);
    State::AddPlain(acc[0], state.histogram[kTile]);
    State::AddPlain(acc[1], state.histogram[kTile + 1]);
  }
  __device__ __forceinline__ void AddToMany(int first_id, const uint32_t* plain) const {
    float acc[2][4];
    SumPatterns(first_id, plain, acc);
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int k = 0; k < State::kLaneValues; ++k) {
        const int id = first_id + 16 * tile + k / C::kLaneHeads * 8 + state.g;
        if (id >= state.num_v_patterns) continue;
        const uint32_t at = state.ManyAddress(id - C::kRegisterPatterns, k % C::kLaneHeads);
        const float sum = acc[tile][C::kWide ? k : 2 * k + 1];
        ptx::StoreSharedFloat(at, ptx::LoadSharedFloat(at) + sum);
      }
    }
  }

  // After PrepareGroup: codes of V times weights, of kCount channel tiles.
  template <int kCount>
  __device__ __forceinline__ void AddTiles(uint32_t v_codes, int first,
                                           const uint32_t (&b)[2 * kTiles]) const {
    float acc[kCount][4];
#pragma unroll
    for (int t = 0; t < kCount; ++t) State::ClearTile(acc[t]);
    MultiplyTiles<C::kBits, kBlockTokens, kCount>(v_codes, first, state.lane, b, acc);
#pragma unroll
    for (int t = 0; t < kCount; ++t) State::AddScaled(acc[t], 1.0f, state.out[first + t]);
  }
  __device__ __forceinline__ void AddCodes(uint32_t v_codes,
                                           const uint32_t (&b)[2 * kTiles]) const {
    constexpr int kBatch = C::kBits == 2 ? 4 : 2;
#pragma unroll
    for (int i = 0; i < C::kSteps; i += kBatch) AddTiles<kBatch>(v_codes, i, b);
  }

  // Groups of 32 channels or more: two channel tiles after another.
  template <int kPair = 0>
  __device__ __forceinline__ void AddGroups(uint32_t v_codes,
                                            const WeightTile<C> (&weights)[kTiles],
                                            uint32_t (&b)[2 * kTiles]) const {
    if constexpr (C::kGrouped && kPair < C::kMaxVGroups) {
      const int pairs = C::kMaxVGroups / params.v_groups;  // of one group
      if (kPair % pairs == 0) PrepareGroup<kPair>(kPair / pairs, weights, b);
      AddTiles<2>(v_codes, 2 * kPair, b);
      AddGroups<kPair + 1>(v_codes, weights, b);
    }
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_VALUES_CUH_
