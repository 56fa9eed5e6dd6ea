#ifndef PKV_TESTS_BENCH_SERVE_LOAD_RUNNER_H_
#define PKV_TESTS_BENCH_SERVE_LOAD_RUNNER_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "pkv/v1/worker_service.pb.h"
#include "tests/bench/serve/request_record.h"
#include "tests/bench/serve/worker_calls.h"

namespace pkv {

// Requests under way at once, at most: what one client process is meant to keep up with.
inline constexpr int kMaxConcurrency = 1024;

// A request that is ready to be sent.
struct LoadItem {
  int64_t index = 0;
  double arrival_s = 0;  // since the load began; open loop only
  bool prompt_cut = false;
  int num_shared_tokens = 0;  // of the prompt, planned to be shared
  // Without it, `decode` has its ticket already and only Decode is called.
  std::optional<v1::PrefillRequest> prefill = std::nullopt;
  v1::DecodeRequest decode = {};  // the ticket is filled in after the prefill
};

struct LoadOptions {
  // Open loop: an item is sent at its arrival. Closed loop: when fewer than `concurrency` are under
  // way.
  bool open_loop = false;
  // 1..kMaxConcurrency. In an open loop too: what arrives beyond it waits, and is late.
  int concurrency = 1;
  // No item is sent later than this.
  absl::Duration duration = absl::InfiniteDuration();
  // How often a request that is refused (RESOURCE_EXHAUSTED) is tried again: after first_backoff,
  // then twice that, at most max_backoff, each with a random part taken off (up to a half).
  int num_retries_max = 0;
  absl::Duration first_backoff = absl::Milliseconds(50);
  absl::Duration max_backoff = absl::Seconds(2);
};

struct LoadResult {
  std::vector<RequestRecord> records;  // of all that was sent, by index
  double sending_s = 0;                // when the last request was sent
  double ended_s = 0;                  // when the last one ended
  int max_under_way = 0;
  // Open loop: requests that had to wait because max concurrency was reached.
  int64_t num_held_back = 0;
};

// Sends what `next` gives until it gives nothing, and returns when all has ended: every call has a
// deadline. `next` is called from this thread, ahead of time.
// REQUIRES: arrivals do not run backwards
LoadResult RunLoad(const LoadOptions& options, WorkerCalls& calls,
                   const std::function<std::optional<LoadItem>()>& next);

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_SERVE_LOAD_RUNNER_H_
