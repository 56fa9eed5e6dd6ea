#ifndef PKV_KERNELS_ATTENTION_DECODE_ATTENTION_KERNELS_H_
#define PKV_KERNELS_ATTENTION_DECODE_ATTENTION_KERNELS_H_

#include <cstdint>

#include <cuda_runtime_api.h>

#include "kernels/attention/decode_plan_math.h"
#include "pkv/kernels/decode_attention.h"

namespace pkv {

// What a launch of the tensor-core kernel reads.
struct DecodeLaunch {
  DecodeAttentionArgs args;
  DecodeUnitRule rule;
  int num_qo_heads = 0, num_kv_heads = 0, heads_per_kv = 0;
  bool is_rotated = false, is_bfloat16 = false, has_patterns = false;
  // Of the page of one kv head (PayloadLayout).
  int head_bytes = 0, v_codes = 0, k_scales = 0, k_zeros = 0, v_scales = 0, v_zeros = 0, k_ids = 0,
      v_ids = 0;
  int k_groups = 1, v_groups = 1;
  // Scratch: [slice][first or last item][query head] { max, sum, out[head_dim] } fp32, and one
  // ticket a slice, 0 between launches.
  float* partials = nullptr;
  uint32_t* tickets = nullptr;
  int num_ctas = 0;
};

// One instance of the kernel.
struct DecodeKernelInfo {
  const void* kernel = nullptr;
  int threads = 0;
  int shared_bytes = 0;
  int register_patterns = 0;  // with a bank_capacity above it,
  int many_bytes = 0;         // so much more shared memory
  int tile_tokens = 0;        // DecodeUnitRule
};

// What tells instances apart.
struct DecodeKernelKey {
  int bits = 0;  // 2, 4, 16
  int head_dim = 0;
  bool is_wide = false;     // more than 4 query heads a kv head
  bool has_fine = false;    // k_fine_tokens
  bool is_grouped = false;  // several groups in a block, of K or V
};
// Null kernel: no such instance.
DecodeKernelInfo FindDecodeKernel2(const DecodeKernelKey& key);   // 2 bits
DecodeKernelInfo FindDecodeKernel4(const DecodeKernelKey& key);   // 4 bits
DecodeKernelInfo FindDecodeKernel16(const DecodeKernelKey& key);  // fp16

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_ATTENTION_KERNELS_H_
