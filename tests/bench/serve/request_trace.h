#ifndef PKV_TESTS_BENCH_SERVE_REQUEST_TRACE_H_
#define PKV_TESTS_BENCH_SERVE_REQUEST_TRACE_H_

#include <cstdint>
#include <istream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace pkv {

// Tokens that one hash id of a trace stands for.
inline constexpr int kTraceBlockTokens = 512;

// A request that somebody's service once had.
struct TraceRequest {
  double arrival_s = 0;  // since the first request of the trace
  int prompt_tokens = 0, output_tokens = 0;
  // One for each kTraceBlockTokens of the prompt, the last may be part of a block. Equal ids at the
  // start of two requests are a prefix that they share.
  std::vector<uint64_t> block_ids;
};

// Reads the format of the traces published with Mooncake (FAST'25): one JSON object a line,
// {"timestamp": MILLISECONDS, "input_length": N, "output_length": N, "hash_ids": [N...]}.
//   InvalidArgument  names the line: not that, lengths out of range, too few ids for the length,
//                    time that runs backwards, no request at all
absl::StatusOr<std::vector<TraceRequest>> ParseTrace(std::istream& lines);
// The same of a file. NotFound: it cannot be read.
absl::StatusOr<std::vector<TraceRequest>> ReadTrace(const std::string& path);

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_SERVE_REQUEST_TRACE_H_
