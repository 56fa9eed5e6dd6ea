// The encoder of K for variants that search its clip range, correct its gain, have fine codes or
// feed errors back, with one group a channel: default, default4.
//
// A CTA encodes one head of one block. Runs of eight channels follow one another (key_feedback.h);
// the CTA's eight half warps code a channel each, which shares what a channel costs beside its
// values by eight slots a lane. What errors weigh in the next run's targets are sums of products of
// bytes on tensor cores: integers, so equal to the CPU's in any order.
//
// Compiled with --fmad=false: equal bytes to the CPU.

#include "kernels/codec/key_tile.cuh"
#include "proto/block/fragment_order.h"

namespace pkv {
namespace key_search {
namespace {

// A lane's part of the channel that its half warp codes.
template <int kHeadDim, int kBits, int kCoarse>
class ChannelCoder {
 public:
  using Shared = CtaShared<kHeadDim>;
  __device__ ChannelCoder(const LayerEncodeArgs& args, const SlotRows& source, int block, int head,
                          ErrorUnit unit, Shared& shared)
      : args_(args),
        shared_(shared),
        slots_(args.FirstSlot(block), args.layout.encoding.k_fine_tokens),
        out_(args.HeadOf(block, head)),
        scales_(args.k_weight_scales == nullptr ? nullptr : args.k_weight_scales + head * kHeadDim),
        unit_(unit) {
    if (source.ids == nullptr) return;
    columns_ = args.k_pattern_columns + int64_t{head} * kHeadDim * args.k_column_stride;
    const int first_slot = args.FirstSlot(block);
#pragma unroll
    for (int q = 0; q < kSlots; ++q) {
      const int slot = first_slot + slots_.Element(q);
      const int id = slot < kBlockTokens ? source.Id(slot) : kRawPatternId;
      // Raw vectors, and what is not there, take the column of zeros.
      const int column = id == kRawPatternId ? args.num_k_patterns : id;
      ids_[q / 4] |= static_cast<uint32_t>(column) << q % 4 * 8;
    }
  }

  // The residuals of step `step`.
  __device__ Octet Original(int step) const {
    const uint4 piece = shared_.Piece(step, Lane());
    const __half2* pairs = reinterpret_cast<const __half2*>(&piece);
    Octet out;
#pragma unroll
    for (int i = 0; i < kSlots / 2; ++i) {
      const float2 both = __half22float2(pairs[i]);
      out.x[2 * i] = both.x;
      out.x[2 * i + 1] = both.y;
    }
    if (columns_ == nullptr) return out;
    const float* column = columns_ + shared_.order[step] * args_.k_column_stride;
#pragma unroll
    for (int q = 0; q < kSlots; ++q) {
      out.x[q] = out.x[q] - __ldg(column + (ids_[q / 4] >> q % 4 * 8 & 0xffu));
    }
    return out;
  }

  // FeedbackTarget() from shared.sums.
  __device__ Octet Target(int step, const Octet& original) const {
    const float factor = unit_.value * (1.0f / (1 << kCodeBits)) * __ldg(scales_ + step);
    const auto* sums = reinterpret_cast<const int4*>(shared_.sums[ChannelOfRun()]) + 2 * Lane();
    const int4 first = sums[0], second = sums[1];
    const int of_slot[kSlots] = {first.x,  first.y,  first.z,  first.w,
                                 second.x, second.y, second.z, second.w};
    Octet target;
#pragma unroll
    for (int q = 0; q < kSlots; ++q) {
      target.x[q] = FeedbackTarget(original.x[q], factor, of_slot[q]);
    }
    return target;
  }

  // Codes the step: its errors and codes go where its values were, scale and zero to the page.
  __device__ void Code(int step, const Octet& original, const Octet& target) {
    const int channel = shared_.order[step];
    const GroupParams searched = Search<kBits>(slots_, target, args_.num_ratios_k);
    const CodeSteps steps =
        MakeCodeSteps(StoredToFloat(searched.scale), StoredToFloat(searched.zero), kBits);
    Octet on_base, codes;
#pragma unroll
    for (int q = 0; q < kSlots; ++q) {
      on_base.x[q] = CodeOnBase<kBits>(target.x[q], steps);
      codes.x[q] = on_base.x[q] - 0x1p+23f;
    }
    GroupParams stored = searched;
    if (args_.unbiased_k) stored = Corrected(slots_, target, codes, searched);
    const float scale = StoredToFloat(stored.scale), zero = StoredToFloat(stored.zero);
    if (Lane() == 0) {
      const int at = ColumnPosition(channel, kHeadDim);
      reinterpret_cast<Float16Bits*>(out_ + args_.layout.k_scales)[at] = stored.scale;
      reinterpret_cast<Float16Bits*>(out_ + args_.layout.k_zeros)[at] = stored.zero;
    }
    Octet errors;
#pragma unroll
    for (int q = 0; q < kSlots; ++q) errors.x[q] = LevelOf(codes.x[q], scale, zero) - original.x[q];
    if (slots_.HasFine()) CodeFine(target, original, FineGridOf(scale, zero), on_base, errors);
    shared_.Piece(step, Lane()) = {Pack(on_base, errors, 0), Pack(on_base, errors, 2),
                                   Pack(on_base, errors, 4), Pack(on_base, errors, 6)};
  }

 private:
  // The lane's fine slot: its code and its error in place of coarse ones.
  __device__ void CodeFine(const Octet& target, const Octet& original, FineGrid grid,
                           Octet& on_base, Octet& errors) const {
    float value = 0, wanted = 0;
#pragma unroll
    for (int q = kSurelyCoarse; q < kSlots; ++q) {
      value = slots_.IsFine(q) ? target.x[q] : value;
      wanted = slots_.IsFine(q) ? original.x[q] : wanted;
    }
    const float code = QuantizeOne(value, grid.step, grid.low, MaxCode(kFineBits));
    const float error = DequantizeOne(code, grid.step, grid.low) - wanted;
#pragma unroll
    for (int q = kSurelyCoarse; q < kSlots; ++q) {
      errors.x[q] = slots_.IsFine(q) ? error : errors.x[q];
      on_base.x[q] = slots_.IsFine(q) ? code + 0x1p+23f : on_base.x[q];
    }
  }

  // Two of the lane's values as they stand in the tile.
  __device__ uint32_t Pack(const Octet& on_base, const Octet& errors, int q) const {
    uint32_t packed[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int counted = CountedError(errors.x[q + i], unit_);
      packed[i] = (static_cast<uint32_t>(counted) << kCodeBits) + __float_as_uint(on_base.x[q + i]);
    }
    return __byte_perm(packed[0], packed[1], 0x5410);
  }

  const LayerEncodeArgs& args_;
  Shared& shared_;
  const LaneSlots<kCoarse> slots_;
  std::byte* const out_;
  const float* const scales_;
  const ErrorUnit unit_;
  const float* columns_ = nullptr;  // [channel][pattern], of the head
  uint32_t ids_[2] = {};            // the columns of the lane's slots, a byte each
};

template <int kHeadDim, int kBits, int kCoarse>
__device__ void CodeChannels(const LayerEncodeArgs& args, const SlotRows& source, int block,
                             int head, ErrorUnit unit, CtaShared<kHeadDim>& shared) {
  ChannelCoder<kHeadDim, kBits, kCoarse> coder(args, source, block, head, unit, shared);
  const bool has_feedback = args.k_order != nullptr;
  const int64_t weights_at = has_feedback ? int64_t{head} * kHeadDim * kHeadDim : 0;
  FeedbackSums<kHeadDim> feedback(args.k_weights, weights_at, shared);
  typename FeedbackSums<kHeadDim>::Weights weights;
#pragma unroll 1
  for (int run = 0; run < kHeadDim / kFeedbackRun; ++run) {
    const int step = run * kFeedbackRun + ChannelOfRun();
    const Octet original = coder.Original(step);
    Octet target = original;
    if (has_feedback && run > 0) {
      __syncthreads();  // all errors of the run before are there, and its sums read
      feedback.Put(run, weights);
      __syncthreads();
      target = coder.Target(step, original);
    }
    if (has_feedback && run + 1 < kHeadDim / kFeedbackRun) weights = feedback.Ask(run + 1);
    coder.Code(step, original, target);
  }
}

// The channels' order, and K with its ids. Returns the unit of errors.
template <int kHeadDim>
__device__ ErrorUnit Prepare(const LayerEncodeArgs& args, const SlotRows& source, int block,
                             int head, CtaShared<kHeadDim>& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kHeadDim) {
    const int channel = args.k_order == nullptr ? thread : args.k_order[head * kHeadDim + thread];
    shared.order[thread] = static_cast<uint8_t>(channel);
    shared.step_of[channel] = static_cast<uint8_t>(thread);
  }
  if (source.ids != nullptr) {
    auto* ids = reinterpret_cast<uint8_t*>(args.HeadOf(block, head) + args.layout.k_ids);
    ids[RowPosition(thread, kBlockTokens)] = static_cast<uint8_t>(source.Id(thread));
  }
  __syncthreads();
  unsigned largest = TileLoader<kHeadDim>(source, args.FirstSlot(block), shared).Load();
  largest = __reduce_max_sync(kAllLanes, largest);
  if (WarpLane() == 0) shared.largest[Warp()] = static_cast<uint16_t>(largest);
  __syncthreads();
  for (const uint16_t of_warp : shared.largest) largest = max(largest, unsigned{of_warp});
  return ErrorUnitFor(static_cast<Float16Bits>(largest));
}

// Grid: (block, kv head), so that neighbours share weights and patterns.
template <int kHeadDim, int kBits>
__global__ void __launch_bounds__(kThreads, 6)
    KeySearchKernel(const __grid_constant__ LayerEncodeArgs args) {
  __shared__ CtaShared<kHeadDim> shared;
  const int block = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const SlotRows source = SlotRows::Keys(args, block, head);
  const ErrorUnit unit = Prepare(args, source, block, head, shared);
  const int first_slot = args.FirstSlot(block), num_fine = args.layout.encoding.k_fine_tokens;
  constexpr int kKnown = kKnownCoarse<kBits>;
  if (first_slot == 0 && num_fine == kBlockTokens - kKnown * kLanes) {
    CodeChannels<kHeadDim, kBits, kKnown>(args, source, block, head, unit, shared);
  } else {
    CodeChannels<kHeadDim, kBits, 0>(args, source, block, head, unit, shared);
  }
  std::byte* out = args.HeadOf(block, head);
  const int num_coarse = kBlockTokens - num_fine;
  CodeWriter<kHeadDim, kBits>(0, shared).Write(
      reinterpret_cast<uint32_t*>(out + args.layout.k_codes), first_slot, num_coarse);
  if constexpr (kBits == 2) {
    if (num_fine == 0) return;
    CodeWriter<kHeadDim, kFineBits>(num_coarse - first_slot, shared)
        .Write(reinterpret_cast<uint32_t*>(out + args.layout.k_fine_codes), 0, num_fine);
  }
}

// Patterns of K by channel: [kv_head][channel][stride] in fp32, zeros behind the last pattern.
// Grid: (channel, kv head).
__global__ void PatternColumnsKernel(const __grid_constant__ LayerEncodeArgs args) {
  const int channel = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const uint16_t* patterns = args.k_patterns + head * args.k_bank_head_stride + channel;
  float* row =
      args.k_pattern_columns + (int64_t{head} * args.head_dim() + channel) * args.k_column_stride;
  for (int i = static_cast<int>(threadIdx.x); i < args.k_column_stride; i += 32) {
    row[i] = i < args.num_k_patterns ? StoredToFloat(patterns[i * args.head_dim()]) : 0.0f;
  }
}

template <int kHeadDim, int kBits>
cudaError_t Launch(const LayerEncodeArgs& args, cudaStream_t stream) {
  const dim3 grid(args.num_blocks, args.num_kv_heads());
  KeySearchKernel<kHeadDim, kBits><<<grid, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace
}  // namespace key_search

bool KeySearchCovers(const LayerEncodeArgs& args) {
  return args.layout.encoding.k_group_tokens == kBlockTokens &&
         (args.k_ids == nullptr || args.k_pattern_columns != nullptr);
}

cudaError_t LaunchKeySearch(const LayerEncodeArgs& args, cudaStream_t stream) {
  LayerEncodeArgs search = args;
  if (args.k_ids != nullptr) {
    search.k_column_stride = KeyColumnStride(args.num_k_patterns);
    const dim3 grid(args.head_dim(), args.num_kv_heads());
    key_search::PatternColumnsKernel<<<grid, 32, 0, stream>>>(search);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  }
  const bool is_2_bit = args.layout.encoding.bits_k == 2;
  if (args.head_dim() == 64) {
    return is_2_bit ? key_search::Launch<64, 2>(search, stream)
                    : key_search::Launch<64, 4>(search, stream);
  }
  return is_2_bit ? key_search::Launch<128, 2>(search, stream)
                  : key_search::Launch<128, 4>(search, stream);
}

}  // namespace pkv
