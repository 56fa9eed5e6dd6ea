#ifndef PKV_KERNELS_ATTENTION_ATTENTION_BACKENDS_H_
#define PKV_KERNELS_ATTENTION_ATTENTION_BACKENDS_H_

#include "pkv/kernels/paged_attention.h"

namespace pkv {

// What PagedAttention() dispatches to. REQUIRES: the arguments were checked.
void PagedAttentionCpu(const AttentionArgs& args, ThreadPool* pool);

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_ATTENTION_BACKENDS_H_
