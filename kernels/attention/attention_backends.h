#ifndef PKV_KERNELS_ATTENTION_ATTENTION_BACKENDS_H_
#define PKV_KERNELS_ATTENTION_ATTENTION_BACKENDS_H_

#include "pkv/kernels/paged_attention.h"

namespace pkv {

// How codes meet queries and weights: rounded to 16 bits, in integers (code_matrix_simd.h), or in
// fp32 (code_matrix.h), the plain loops that the former are tested against.
enum class CodeArithmetic { kInteger, kFloat };

// What PagedAttention() dispatches to. REQUIRES: the arguments were checked.
void PagedAttentionCpu(const AttentionArgs& args, ThreadPool* pool, CodeArithmetic arithmetic);

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_ATTENTION_BACKENDS_H_
