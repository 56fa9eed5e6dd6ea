#ifndef PKV_TESTS_BENCH_PREFILL_SECTION_H_
#define PKV_TESTS_BENCH_PREFILL_SECTION_H_

#include <vector>

#include "absl/status/statusor.h"
#include "tests/bench/report.h"

namespace pkv {

// Times what a prefill pass runs of one layer besides products of matrices: attention of chunks,
// and the statistics of their queries, on random numbers. prefill_peers.py times PyTorch's
// attention on the same shapes.
absl::StatusOr<std::vector<PrefillRow>> TimePrefill(int repetitions, void* stream);

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_PREFILL_SECTION_H_
