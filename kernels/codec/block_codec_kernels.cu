// The plain CUDA codec: one CTA of 128 threads a kv head of a block, in the order of
// block_codec_cpu.cc. It encodes every variant, and is what other encoders are held to on a device.
//
// A thread owns a slot or a channel in turn: K slot (channel after channel, fitted by the threads
// of the slot's group together, key_fit_math.h), V slot (scale, zero point over channels), V
// channel (codes). Values are read again from L1 for every use instead of being staged. Compiled
// with --fmad=false: equal bytes to the CPU.

#include "kernels/codec/block_codec_kernels.h"
#include "kernels/codec/code_steps_math.h"
#include "kernels/codec/codec_math.h"
#include "kernels/codec/group_lanes_math.h"
#include "kernels/codec/head_sections.h"
#include "kernels/codec/key_feedback_math.h"
#include "kernels/codec/key_fit_math.h"
#include "kernels/codec/layer_encode.h"
#include "kernels/pattern/pattern_math.h"
#include "pkv/kernels/key_feedback.h"
#include "proto/block/fragment_order.h"

namespace pkv {
namespace {

constexpr int kThreads = kBlockTokens;
constexpr int kMaxHeadDim = 128;
constexpr int kMaxGroupsV = kMaxHeadDim / 32;

// The sections of one head of a quantized page.
__device__ HeadSections<std::byte> SectionsOf(const LayerEncodeArgs& args, int block, int head) {
  const PayloadLayout& layout = args.layout;
  std::byte* at = args.HeadOf(block, head);
  HeadSections<std::byte> out;
  out.k_codes = reinterpret_cast<uint32_t*>(at + layout.k_codes);
  out.k_fine_codes = reinterpret_cast<uint32_t*>(at + layout.k_fine_codes);
  out.v_codes = reinterpret_cast<uint32_t*>(at + layout.v_codes);
  out.k_scales = reinterpret_cast<Float16Bits*>(at + layout.k_scales);
  out.k_zeros = reinterpret_cast<Float16Bits*>(at + layout.k_zeros);
  out.v_scales = reinterpret_cast<Float16Bits*>(at + layout.v_scales);
  out.v_zeros = reinterpret_cast<Float16Bits*>(at + layout.v_zeros);
  out.k_ids = reinterpret_cast<uint8_t*>(at + layout.k_ids);
  out.v_ids = reinterpret_cast<uint8_t*>(at + layout.v_ids);
  return out;
}

// The threads of this CTA, from inside one of them.
struct ThisCta {
  KeyFitThread* thread;

  template <typename Phase>
  PKV_HOST_DEVICE void operator()(const Phase& phase) const {
    phase(*thread);
#ifdef __CUDA_ARCH__
    __syncthreads();
#endif
  }
};

// What the counted errors of the runs before weigh in this slot.
__device__ int FeedbackSum(const int8_t* weights, const int16_t* errors, int num_earlier) {
  int sum = 0;
  for (int j = 0; j < num_earlier; ++j) sum += weights[j] * errors[j * kThreads];
  return sum;
}

// ErrorUnitFor() the group of this thread's slot. Uses the targets' place.
__device__ ErrorUnit UnitOfGroup(const SlotRows& k, const KeyFitThread& thread, int group_tokens,
                                 KeyFitShared& shared) {
  const int slot = static_cast<int>(threadIdx.x), begin = slot / group_tokens * group_tokens;
  float largest = 0;
  for (int channel = 0; thread.is_coded() && channel < k.head_dim; ++channel) {
    largest = fmaxf(largest, fabsf(k.Residual(slot, channel)));
  }
  shared.targets[slot] = largest;
  __syncthreads();
  for (int i = begin; i < begin + group_tokens; ++i) largest = fmaxf(largest, shared.targets[i]);
  __syncthreads();
  return ErrorUnitFor(ToStored(largest));
}

// A thread owns a slot, and its column of the counted errors [step][slot]; without feedback there
// are none.
__device__ void EncodeK(const SlotRows& k, const LayerEncodeArgs& args, int block, int head,
                        const HeadSections<std::byte>& frame, KeyFitShared& shared,
                        int16_t* errors) {
  const Encoding& encoding = args.layout.encoding;
  const int slot = static_cast<int>(threadIdx.x), d = k.head_dim, bits = encoding.bits_k;
  const bool has_feedback = args.k_order != nullptr;
  const int64_t feedback_at = int64_t{head} * d;
  if (k.ids != nullptr) {
    frame.k_ids[RowPosition(slot, kBlockTokens)] = static_cast<uint8_t>(k.Id(slot));
  }
  const KeyFitRule rule = {encoding.k_group_tokens, args.FirstSlot(block),
                           encoding.k_fine_tokens,  bits,
                           args.num_ratios_k,       args.unbiased_k};
  KeyFitThread thread(rule, slot, shared);
  ErrorUnit unit;
  if (has_feedback) unit = UnitOfGroup(k, thread, encoding.k_group_tokens, shared);
  for (int step = 0; step < d; ++step) {
    const int channel = has_feedback ? args.k_order[feedback_at + step] : step;
    const float original = thread.is_coded() ? k.Residual(slot, channel) : 0.0f;
    float target = original;
    if (has_feedback && thread.is_coded()) {
      const int sum = FeedbackSum(args.k_weights + (feedback_at + step) * d, errors + slot,
                                  step / kFeedbackRun * kFeedbackRun);
      target = FeedbackTarget(target, unit.value * args.k_weight_scales[feedback_at + step], sum);
    }
    thread.PutTarget(target);
    __syncthreads();
    FitKeys(rule, ThisCta{&thread});
    if (thread.is_first_worker()) {
      const int at = thread.group_index() * d + ColumnPosition(channel, d);
      frame.k_scales[at] = thread.stored().scale;
      frame.k_zeros[at] = thread.stored().zero;
    }
    if (!thread.is_coded()) continue;
    const KeyFitThread::Coded coded = thread.Code();
    if (has_feedback) {
      errors[step * kThreads + slot] =
          static_cast<int16_t>(CountedError(coded.value - original, unit));
    }
    // Every word of a code matrix belongs to one row: no other thread writes it.
    if (thread.is_fine()) {
      const int row = slot - (kBlockTokens - kFineTokens);
      const CodePosition place = LocateCode(row, channel, d, kFineBits);
      frame.k_fine_codes[place.word_index] |= coded.code << place.shift;
    } else {
      const CodePosition place = LocateCode(slot, channel, d, bits);
      frame.k_codes[place.word_index] |= coded.code << place.shift;
    }
  }
}

// A V group of one slot.
struct SlotGroup {
  const SlotRows& v;
  int slot, first;

  PKV_HOST_DEVICE float operator()(int i) const { return v.Residual(slot, first + i); }
};

// Scale and zero point that the codes of V come from, when the frame holds corrected ones.
struct SearchedV {
  GroupParams params[kMaxGroupsV][kBlockTokens];
  uint8_t ids[kBlockTokens];  // by row, gated
};

// Error of a slot's V as searched, all groups.
__device__ float SearchedError(const SlotRows& v, const LayerEncodeArgs& args, int slot) {
  const Encoding& encoding = args.layout.encoding;
  const int channels = encoding.v_group_channels;
  float error = 0;
  for (int first = 0; first < v.head_dim; first += channels) {
    const SlotGroup values = {v, slot, first};
    const GroupParams params = SearchLanes(values, channels, encoding.bits_v, args.num_ratios_v);
    float sums[kErrorSums];
    for (int lane = 0; lane < kErrorSums; ++lane) {
      sums[lane] = ErrorLane(values, lane, channels, params, encoding.bits_v);
    }
    error = error + FoldErrorSums(sums);
  }
  return error;
}

__device__ float RangeOfRow(const SlotRows& v, int slot) {
  float low = v.Residual(slot, 0), high = low;
  for (int channel = 1; channel < v.head_dim; ++channel) {
    const float value = v.Residual(slot, channel);
    low = fminf(low, value);
    high = fmaxf(high, value);
  }
  return high - low;
}

// Whether the gate lets the slot's pattern be subtracted.
__device__ bool GateAccepts(const SlotRows& v, const LayerEncodeArgs& args, int slot) {
  SlotRows raw = v;
  raw.ids = nullptr;
  switch (args.gate_v) {
    case Gate::kNone:
      return true;
    case Gate::kZTest:
      return ZTestAccepts(RangeOfRow(v, slot), RangeOfRow(raw, slot), args.gate_threshold);
    case Gate::kExactMse:
      return SearchedError(v, args, slot) < SearchedError(raw, args, slot);
  }
  return true;
}

__device__ void EncodeVParams(const SlotRows& v, const LayerEncodeArgs& args, int first_slot,
                              const HeadSections<std::byte>& frame, SearchedV& searched) {
  const Encoding& encoding = args.layout.encoding;
  const int slot = static_cast<int>(threadIdx.x), channels = encoding.v_group_channels;
  const int bits = encoding.bits_v;
  if (v.ids != nullptr) {
    frame.v_ids[ColumnPosition(slot, kBlockTokens)] = static_cast<uint8_t>(v.Id(slot));
  }
  if (slot < first_slot) return;
  for (int group = 0; group < v.head_dim / channels; ++group) {
    const SlotGroup values = {v, slot, group * channels};
    const GroupParams found = SearchLanes(values, channels, bits, args.num_ratios_v);
    const GroupParams stored =
        args.unbiased_v ? CorrectLanes(values, channels, bits, found) : found;
    searched.params[group][slot] = found;
    frame.v_scales[group * kBlockTokens + RowPosition(slot, kBlockTokens)] = stored.scale;
    frame.v_zeros[group * kBlockTokens + ColumnPosition(slot, kBlockTokens)] = stored.zero;
  }
}

__device__ void EncodeVCodes(const SlotRows& v, const LayerEncodeArgs& args, int first_slot,
                             const HeadSections<std::byte>& frame, const SearchedV& searched) {
  const Encoding& encoding = args.layout.encoding;
  const int channel = static_cast<int>(threadIdx.x), bits = encoding.bits_v;
  if (channel >= v.head_dim) return;
  const int group = channel / encoding.v_group_channels;
  for (int slot = first_slot; slot < kBlockTokens; ++slot) {
    const GroupParams params = searched.params[group][slot];
    const float code = QuantizeOne(v.Residual(slot, channel), Float16ToFloat(params.scale),
                                   Float16ToFloat(params.zero), MaxCode(bits));
    const CodePosition place = LocateCode(channel, slot, kBlockTokens, bits);
    frame.v_codes[place.word_index] |= static_cast<uint32_t>(code) << place.shift;
  }
}

// Clears [begin, end) of a head.
__device__ void Clear(std::byte* head, int64_t begin, int64_t end) {
  auto* words = reinterpret_cast<uint32_t*>(head);
  for (int64_t i = begin / 4 + threadIdx.x; i < end / 4; i += kThreads) words[i] = 0;
}

// Grid: kv heads x blocks. Dynamic shared memory: with feedback, KeyErrorBytes(head_dim).
__global__ void __launch_bounds__(kThreads) PlainKeysKernel(LayerEncodeArgs args) {
  extern __shared__ int16_t key_errors[];
  __shared__ KeyFitShared key_fit;
  const int head = static_cast<int>(blockIdx.x), block = static_cast<int>(blockIdx.y);
  const PayloadLayout& layout = args.layout;
  Clear(args.HeadOf(block, head), layout.k_codes, layout.v_codes);
  Clear(args.HeadOf(block, head), layout.k_scales, layout.v_scales);
  __syncthreads();
  EncodeK(SlotRows::Keys(args, block, head), args, block, head, SectionsOf(args, block, head),
          key_fit, key_errors);
}

// Grid: kv heads x blocks.
__global__ void __launch_bounds__(kThreads) PlainValuesKernel(LayerEncodeArgs args) {
  __shared__ SearchedV searched;
  const int head = static_cast<int>(blockIdx.x), block = static_cast<int>(blockIdx.y);
  const int slot = static_cast<int>(threadIdx.x), first_slot = args.FirstSlot(block);
  const PayloadLayout& layout = args.layout;
  Clear(args.HeadOf(block, head), layout.v_codes, layout.k_scales);
  Clear(args.HeadOf(block, head), layout.v_scales, layout.k_ids);
  SlotRows v = SlotRows::Values(args, block, head);
  const int id = v.Id(slot);
  const bool has_pattern = id != kRawPatternId && GateAccepts(v, args, slot);
  searched.ids[v.RowOf(slot)] = has_pattern ? static_cast<uint8_t>(id) : kRawPatternId;
  __syncthreads();
  if (v.ids != nullptr) v.ids = searched.ids;
  const HeadSections<std::byte> frame = SectionsOf(args, block, head);
  EncodeVParams(v, args, first_slot, frame, searched);
  __syncthreads();
  EncodeVCodes(v, args, first_slot, frame, searched);
}

// Grid: kv heads x blocks. `count` rows a head to `at`, K and then V; heads head_elements apart,
// blocks as pages are.
__global__ void __launch_bounds__(kThreads)
    RowCopyKernel(LayerEncodeArgs args, int count, uint16_t* at, int64_t head_elements) {
  const int head = static_cast<int>(blockIdx.x), block = static_cast<int>(blockIdx.y);
  const int d = args.head_dim();
  uint16_t* out = at != nullptr ? at + head * head_elements
                                : reinterpret_cast<uint16_t*>(args.HeadOf(block, head));
  const int64_t from = args.RowsAt(block, head);
  bool is_finite = true;
  for (int i = static_cast<int>(threadIdx.x); i < count * d; i += kThreads) {
    out[i] = args.k[from + i];
    out[count * d + i] = args.v[from + i];
    is_finite = is_finite && IsFiniteFloat16(out[i]) && IsFiniteFloat16(out[count * d + i]);
  }
  if (!is_finite && args.has_non_finite != nullptr) *args.has_non_finite = 1;
}

// Grid: kv heads x {K, V}.
__global__ void __launch_bounds__(kThreads)
    FiniteCheckKernel(KvTensorView kv, unsigned long long* place) {
  const int head = static_cast<int>(blockIdx.x), is_v = static_cast<int>(blockIdx.y);
  const uint16_t* rows = (is_v ? kv.v : kv.k) + head * kv.head_stride;
  const int count = kBlockTokens * kv.head_dim;
  const auto first = static_cast<unsigned long long>(is_v * kv.num_kv_heads + head) * count;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    if (!IsFiniteFloat16(rows[i])) atomicMin(place, first + i);
  }
}

// [head_dim][128].
constexpr int KeyErrorBytes(int head_dim) {
  return head_dim * kThreads * static_cast<int>(sizeof(int16_t));
}

}  // namespace

cudaError_t LaunchFiniteCheck(const KvTensorView& kv, unsigned long long* place,
                              cudaStream_t stream) {
  FiniteCheckKernel<<<dim3(kv.num_kv_heads, 2), kThreads, 0, stream>>>(kv, place);
  return cudaGetLastError();
}

cudaError_t LaunchPlainKeys(const LayerEncodeArgs& args, cudaStream_t stream) {
  const int shared_bytes = args.k_order == nullptr ? 0 : KeyErrorBytes(args.head_dim());
  const dim3 grid(args.num_kv_heads(), args.num_blocks);
  PlainKeysKernel<<<grid, kThreads, shared_bytes, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t LaunchPlainValues(const LayerEncodeArgs& args, cudaStream_t stream) {
  const dim3 grid(args.num_kv_heads(), args.num_blocks);
  PlainValuesKernel<<<grid, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t LaunchRowCopy(const LayerEncodeArgs& args, cudaStream_t stream) {
  if (args.layout.encoding.is_fp16()) {
    const dim3 grid(args.num_kv_heads(), args.num_blocks);
    RowCopyKernel<<<grid, kThreads, 0, stream>>>(args, kBlockTokens, nullptr, 0);
  } else {
    const int64_t head_elements = int64_t{2} * args.num_sinks * args.head_dim();
    RowCopyKernel<<<args.num_kv_heads(), kThreads, 0, stream>>>(args, args.num_sinks, args.sinks,
                                                                head_elements);
  }
  return cudaGetLastError();
}

}  // namespace pkv
