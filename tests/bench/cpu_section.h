#ifndef PKV_TESTS_BENCH_CPU_SECTION_H_
#define PKV_TESTS_BENCH_CPU_SECTION_H_

#include <vector>

#include "absl/status/statusor.h"
#include "tests/bench/report.h"
#include "tests/bench/sample_kv.h"

namespace pkv {

struct CpuTiming {
  int repetitions = 10;
  int window_tokens = kBlockTokens;
};

// Times one core on all blocks of the sample: choosing patterns and encoding with the given bank
// (bytes of fp16 input; fp16 blocks are only copied, and left out), and attention for 1, 4 and 8
// query heads a kv head (bytes of blocks).
absl::StatusOr<std::vector<CpuRow>> TimeCpu(const SampleKv& kv, const EncodedSample& sample,
                                            const CpuTiming& timing);

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_CPU_SECTION_H_
