#ifndef PKV_TESTS_BENCH_COMPRESSION_SECTION_H_
#define PKV_TESTS_BENCH_COMPRESSION_SECTION_H_

#include <vector>

#include "absl/status/statusor.h"
#include "tests/bench/report.h"
#include "tests/bench/sample_kv.h"

namespace pkv {

struct CompressionTiming {
  int num_tokens = 32 << 10;  // of the prompt; whole blocks
  int num_flushes = 32;       // requests whose windows are flushed together
  int repetitions = 20;
  int64_t l2_bytes = 0;  // of the device
};

// Times the compression of one layer of a prompt, the sample's tokens over and over: encoding with
// given ids, with the choice of patterns, and with mining; for presets with error feedback also all
// of it with feedback and importance, as a worker asks for it; and a decode step's flush of many
// windows. Buffers are taken in turn (PlanCopies). With given ids every page is compared with what
// the CPU codec wrote.
absl::StatusOr<std::vector<CompressionRow>> TimeCompression(const SampleKv& kv,
                                                            const EncodedSample& sample,
                                                            const CompressionTiming& timing,
                                                            void* stream);

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_COMPRESSION_SECTION_H_
