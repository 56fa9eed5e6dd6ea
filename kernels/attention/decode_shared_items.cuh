#ifndef PKV_KERNELS_ATTENTION_DECODE_SHARED_ITEMS_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_SHARED_ITEMS_CUH_

// From parts of items to outputs: the last slice of an item to finish merges the parts of all, in
// the order of slices, so equal inputs give equal bits.

#include "kernels/attention/decode_merge.cuh"

namespace pkv {

// The output of one query head: out / sum, rounded to the query's type, and its log-sum-exp.
template <int kChannels>
__device__ void WriteHead(const DecodeLaunch& launch, int64_t head, int lane, float reference,
                          float sum, const float (&out)[kChannels]) {
  const float scale = sum > 0 ? 1.0f / sum : 0.0f;
  const int64_t at = (head * 32 + lane) * kChannels;
  if (launch.is_bfloat16) {
    Values<__nv_bfloat16, kChannels> row;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) row.x[i] = __float2bfloat16_rn(out[i] * scale);
    *reinterpret_cast<Values<__nv_bfloat16, kChannels>*>(
        static_cast<__nv_bfloat16*>(launch.args.out) + at) = row;
  } else {
    Values<__half, kChannels> row;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) row.x[i] = __float2half_rn(out[i] * scale);
    *reinterpret_cast<Values<__half, kChannels>*>(static_cast<__half*>(launch.args.out) + at) = row;
  }
  if (lane == 0 && launch.args.lse != nullptr) {
    constexpr float kLn2 = 0.69314718055994531f;
    launch.args.lse[head] = sum > 0 ? (reference + log2f(sum)) * kLn2 : -INFINITY;
  }
}

// Partial results of an item that several slices share. Slice c leaves its part of the item it
// begins with in place 0, of the item that begins in it and goes on behind it in place 1.
template <typename C>
struct SharedItems {
  static constexpr int kChannels = ItemState<C>::kChannels;
  static constexpr int kFloats = C::kHeadDim + 32;  // a head: max, sum, padding, out

  const DecodeLaunch& launch;
  int warp, lane;

  __device__ float* Place(int slice, int place, int head) const {
    return launch.partials + ((int64_t{slice} * 2 + place) * C::kHeads + head) * kFloats;
  }

  __device__ void Write(int slice, int place, std::byte* shared) const {
    for (int head = warp; head < launch.heads_per_kv; head += C::kWarps) {
      const ItemState<C> item(shared, head, lane);
      float* to = Place(slice, place, head);
      if (lane == 0) to[0] = item.reference(), to[1] = item.sum();
      Values<float, kChannels> row;
      item.Read(row.x);
      reinterpret_cast<Values<float, kChannels>*>(to + 32)[lane] = row;
    }
  }

  // Merges the parts of slices first .. last and writes the output.
  __device__ void Finish(int first, int last, int64_t first_head) const {
    for (int head = warp; head < launch.heads_per_kv; head += C::kWarps) {
      float reference = kLowest, sum = 0, out[kChannels] = {};
      for (int begin = first; begin <= last; begin += 32) {
        // A lane has the maximum and sum of a slice.
        const int count = min(32, last - begin + 1);
        float2 head_of = {kLowest, 0};
        if (lane < count) {
          head_of = __ldcg(reinterpret_cast<const float2*>(
              Place(begin + lane, begin + lane == first ? 1 : 0, head)));
        }
        const float top = fmaxf(
            reference, ReduceLanes(head_of.x, 1, 16, [](float a, float b) { return fmaxf(a, b); }));
        const float factor = ptx::Exp2(head_of.x - top), before = ptx::Exp2(reference - top);
        sum = sum * before +
              ReduceLanes(head_of.y * factor, 1, 16, [](float a, float b) { return a + b; });
        reference = top;
#pragma unroll
        for (int i = 0; i < kChannels; ++i) out[i] *= before;
#pragma unroll 16
        for (int i = 0; i < count; ++i)
          AddPart(begin + i, begin + i == first ? 1 : 0, head, __shfl_sync(0xffffffffu, factor, i),
                  out);
      }
      WriteHead(launch, first_head + head, lane, reference, sum, out);
    }
  }

 private:
  __device__ __forceinline__ void AddPart(int slice, int place, int head, float factor,
                                          float (&out)[kChannels]) const {
    const float* row = Place(slice, place, head) + 32 + lane * kChannels;
    if constexpr (kChannels == 4) {
      const float4 v = __ldcg(reinterpret_cast<const float4*>(row));
      out[0] = fmaf(v.x, factor, out[0]), out[1] = fmaf(v.y, factor, out[1]);
      out[2] = fmaf(v.z, factor, out[2]), out[3] = fmaf(v.w, factor, out[3]);
    } else {
      const float2 v = __ldcg(reinterpret_cast<const float2*>(row));
      out[0] = fmaf(v.x, factor, out[0]), out[1] = fmaf(v.y, factor, out[1]);
    }
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_SHARED_ITEMS_CUH_
