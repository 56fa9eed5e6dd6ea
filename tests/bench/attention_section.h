#ifndef PKV_TESTS_BENCH_ATTENTION_SECTION_H_
#define PKV_TESTS_BENCH_ATTENTION_SECTION_H_

#include <string>

#include "absl/status/statusor.h"
#include "pkv/kernels/decode_attention.h"
#include "proto/base/thread_pool.h"
#include "tests/bench/report.h"
#include "tests/bench/sample_kv.h"

namespace pkv {

struct AttentionTiming {
  int window_tokens = kBlockTokens;  // of a request that is that long
  QueryType query_type = QueryType::kFloat16;
  DecodeKernel kernel = DecodeKernel::kTensorCore;
  bool overlaps_previous = true;  // DecodeAttentionShape
  int repetitions = 20;
  uint64_t seed = 1;     // of mixed lengths and of the order of pages
  int64_t l2_bytes = 0;  // of the device
};

// Times decode attention of one case over paged blocks of the sample, whole launches in a CUDA
// graph, pages in random order, buffers taken in turn (PlanCopies); and compares what the first and
// the last copy wrote with attention in fp64 over the dequantized blocks, for three (request, kv
// head). The row's preset comes from `sample`, its data from the caller.
//   Unimplemented        the kernel does not take the case
//   ResourceExhausted    not enough device memory
absl::StatusOr<AttentionRow> TimeAttention(const AttentionCase& attention_case, const SampleKv& kv,
                                           const EncodedSample& sample,
                                           const AttentionTiming& timing, void* stream,
                                           ThreadPool* pool);

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_ATTENTION_SECTION_H_
