#ifndef PKV_TESTS_BENCH_SERVE_WORKLOAD_H_
#define PKV_TESTS_BENCH_SERVE_WORKLOAD_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/bench/serve/length_distribution.h"
#include "tests/bench/serve/random_stream.h"
#include "tests/bench/serve/request_trace.h"
#include "tests/bench/serve/token_source.h"

namespace pkv {

enum class Arrivals {
  kNone,     // whoever runs the requests decides (closed loop): arrival_s is 0
  kPoisson,  // rate_per_s of them
  kTrace,    // when the trace's requests came, times trace_speed
};

struct WorkloadOptions {
  LengthDistribution prompt_tokens, output_tokens;
  // The share of each prompt's tokens, from its start, that one of num_prefixes common texts gives;
  // align_prefix cuts the shared part to whole blocks. A trace's prompts share what its ids say.
  double shared_prefix = 0;
  int num_prefixes = 1;
  bool align_prefix = false;
  int max_prompt_tokens = kMaxRequestTokens;  // longer prompts are cut, and say so
  // 0: every request has a prompt of its own. N: request i has prompt i % N.
  int64_t num_distinct_prompts = 0;
  Arrivals arrivals = Arrivals::kNone;
  double rate_per_s = 0;
  double trace_speed = 1;
  uint64_t seed = 1;
};

// One request to come.
struct PlannedRequest {
  int64_t index = 0;
  int64_t prompt_index = 0;  // what Prompt takes
  double arrival_s = 0;      // since the load began
  int output_tokens = 0;
  uint64_t sampling_seed = 0;
};

struct PlannedPrompt {
  std::vector<int32_t> token_ids;
  int num_shared_tokens = 0;  // of the common prefix; 0 for a trace, whose ids say it
  bool cut = false;           // to max_prompt_tokens
};

// What a benchmark asks for: a function of options and seed, without clock, network or state of
// the machine. Request i is the same whatever ran before it.
// Thread-compatible.
class Workload {
 public:
  //   InvalidArgument  shared_prefix outside [0, 1], a count or rate that is not positive, a
  //                    distribution or arrivals of a trace without a trace
  static absl::StatusOr<Workload> Make(const WorkloadOptions& options, TokenSource source,
                                       std::vector<TraceRequest> trace);

  // The requests in order; nothing when the trace is at its end (a load without a trace has none).
  std::optional<PlannedRequest> Next();
  // REQUIRES: prompt_index is of a request that Next gave, or below num_distinct_prompts
  PlannedPrompt Prompt(int64_t prompt_index) const;

  // Request i of a warm-up. Its prompt is no request's; it shares their common prefixes.
  PlannedRequest WarmUp(int64_t i) const;
  PlannedPrompt WarmUpPrompt(int64_t i) const;

 private:
  Workload(const WorkloadOptions& options, TokenSource source, std::vector<TraceRequest> trace)
      : options_(options),
        source_(std::move(source)),
        trace_(std::move(trace)),
        arrivals_(ChildSeed(options.seed, {0})) {}

  bool needs_trace() const {
    return options_.arrivals == Arrivals::kTrace || options_.prompt_tokens.from_trace() ||
           options_.output_tokens.from_trace();
  }
  PlannedPrompt DrawPrompt(uint64_t kind, int64_t i) const;
  PlannedPrompt TracePrompt(int64_t i) const;
  const TraceRequest& TraceAt(int64_t i) const { return trace_[i % trace_.size()]; }

  WorkloadOptions options_;          // constant
  TokenSource source_;               // constant
  std::vector<TraceRequest> trace_;  // constant
  RandomStream arrivals_;
  int64_t next_index_ = 0;
  double arrival_s_ = 0;
};

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_SERVE_WORKLOAD_H_
