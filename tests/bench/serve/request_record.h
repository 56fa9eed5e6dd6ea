#ifndef PKV_TESTS_BENCH_SERVE_REQUEST_RECORD_H_
#define PKV_TESTS_BENCH_SERVE_REQUEST_RECORD_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "pkv/v1/worker_service.pb.h"

namespace pkv {

enum class Stage { kPrefill, kDecode };

// What one request did. Times are seconds of the client's monotonic clock since the load began;
// negative: did not happen.
struct RequestRecord {
  int64_t index = 0;
  // When it was to be sent: its arrival (open loop), or when a slot became free (closed loop).
  double intended_s = 0;
  double sent_s = -1;           // the first call began
  double prefilled_s = -1;      // the ticket came; without prefill, when Decode was first called
  std::vector<double> token_s;  // each token's event, in order
  double ended_s = -1;          // the last call ended

  int asked_tokens = 0;
  bool prompt_cut = false;
  int num_shared_tokens = 0;  // of the prompt, planned to be shared
  // Calls answered RESOURCE_EXHAUSTED, and how many of them were tried again.
  int num_refusals = 0, num_retries = 0;

  absl::Status status;                   // how the request ended
  Stage failed_stage = Stage::kPrefill;  // of a failure
  bool has_prefill_stats = false, has_decode_stats = false;
  v1::PrefillStats prefill;
  v1::DecodeStats decode;
};

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_SERVE_REQUEST_RECORD_H_
