#ifndef PKV_TESTS_BENCH_SERVE_SERVE_SETUP_H_
#define PKV_TESTS_BENCH_SERVE_SERVE_SETUP_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/bench/serve/serve_report.h"
#include "tests/bench/serve/worker_calls.h"
#include "tests/bench/serve/workload.h"

namespace pkv {

// What a load needs of the workers before it begins. Both ask for a few prefills at a time, and end
// with the first error of one.

// A text as the workers' tokenizer has it: pieces of it are prefilled
// for the tickets, which hold their token ids. So a text costs its prefill, and where two pieces
// meet a word may be divided otherwise than in the whole text. REQUIRES: `text` is not empty
absl::StatusOr<TokenSource> TokenizeText(WorkerCalls& calls, const std::string& text,
                                         const std::string& preset);

struct Tickets {
  std::vector<v1::HandoffTicket> tickets;  // of prompts 0, 1, ...
  TicketSetup setup;
};
absl::StatusOr<Tickets> MakeTickets(WorkerCalls& calls, const Workload& workload, int64_t count,
                                    const std::string& preset);

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_SERVE_SERVE_SETUP_H_
