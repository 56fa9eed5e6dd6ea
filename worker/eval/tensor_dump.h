#ifndef PKV_WORKER_EVAL_TENSOR_DUMP_H_
#define PKV_WORKER_EVAL_TENSOR_DUMP_H_

#include <map>
#include <string>

#include "absl/status/status.h"
#include "worker/eval/reference_run.h"

namespace pkv {

// Writes what a codec is given and what reads it, as a safetensors file of F16, for every layer L:
//   layers.L.k, layers.L.v     [num_kv_heads, prefix + scored tokens, head_dim], K after RoPE
//   layers.L.q_prefix          [prefix tokens, num_qo_heads, head_dim], after RoPE
//   layers.L.q                 [scored tokens, num_qo_heads, head_dim], after RoPE
// `metadata` stands in the header. Errors of WriteSafetensors.
absl::Status DumpTensors(const ReferenceRun& run, const KvShape& shape,
                         const std::map<std::string, std::string>& metadata,
                         const std::string& path);

}  // namespace pkv

#endif  // PKV_WORKER_EVAL_TENSOR_DUMP_H_
