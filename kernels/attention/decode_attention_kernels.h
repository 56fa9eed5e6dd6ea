#ifndef PKV_KERNELS_ATTENTION_DECODE_ATTENTION_KERNELS_H_
#define PKV_KERNELS_ATTENTION_DECODE_ATTENTION_KERNELS_H_

#include <cstdint>

#include <cuda_runtime_api.h>

#include "kernels/attention/decode_plan_math.h"
#include "pkv/kernels/decode_attention.h"

namespace pkv {

struct WarpPlan;  // decode_ring.cuh

// What a launch of the tensor-core kernel reads.
struct DecodeLaunch {
  DecodeAttentionArgs args;
  DecodeUnitRule rule;
  int num_qo_heads = 0, num_kv_heads = 0, heads_per_kv = 0;
  bool is_rotated = false, is_bfloat16 = false, has_patterns = false, overlaps_previous = false;
  // Of the page of one kv head (PayloadLayout).
  int head_bytes = 0, v_codes = 0, k_scales = 0, k_zeros = 0, v_scales = 0, v_zeros = 0, k_ids = 0,
      v_ids = 0;
  int k_groups = 1, v_groups = 1;
  DecodeTeams head_teams;  // with a line of each kv head
  // Scratch: [team][first or last item][query head] { reference, sum, padding, out[head_dim] }
  // fp32; a ticket for every team and query head, 0 between launches; two parts of items a warp.
  float* partials = nullptr;
  uint32_t* tickets = nullptr;
  float* warp_parts = nullptr;
  WarpPlan* plans = nullptr;  // [CTA][warp], with args.is_planned
  // Of a warp's shared memory: pattern ids that its list of scores has room for, a power of two,
  // and bytes; and all else.
  int table_ids = 0, table_bytes = 0, warp_bytes = 0;
};

// One instance of the kernel.
struct DecodeKernelInfo {
  const void* kernel = nullptr;
  const void* plan_kernel = nullptr;
  int plan_bytes = 0;         // of a warp
  int warps = 0;              // at most, of a CTA
  int warp_bytes = 0;         // shared memory of a warp, and on top of it
  int id_bytes = 0;           // what a list takes for every pattern id
  int register_patterns = 0;  // V patterns that need no list
  int tile_tokens = 0;        // DecodeUnitRule
  int heads = 0;              // query heads a kv head that it has room for
  int part_floats = 0;        // of a warp's part of an item
};

// What tells instances apart.
struct DecodeKernelKey {
  int bits = 0;  // 2, 4, 16
  int head_dim = 0;
  bool is_wide = false;     // more than 4 query heads a kv head
  bool has_fine = false;    // k_fine_tokens
  bool is_grouped = false;  // several groups in a block, of K or V
  bool is_rotated = false;
};
// Null kernel: no such instance.
DecodeKernelInfo FindDecodeKernel2(const DecodeKernelKey& key);   // 2 bits
DecodeKernelInfo FindDecodeKernel4(const DecodeKernelKey& key);   // 4 bits
DecodeKernelInfo FindDecodeKernel16(const DecodeKernelKey& key);  // fp16

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_ATTENTION_KERNELS_H_
