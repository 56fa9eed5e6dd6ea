#ifndef PKV_WORKER_BATCH_SEQUENCE_RUN_H_
#define PKV_WORKER_BATCH_SEQUENCE_RUN_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/batch/batch_engine.h"
#include "worker/batch/batch_request.h"
#include "worker/batch/page_pool.h"
#include "worker/batch/stream_watch.h"
#include "worker/sequence/stopwatch.h"

namespace pkv {

// Pages that a request can ever need: its prompt's blocks, and those that leave the window until
// max_tokens tokens are generated.
int MaxPages(const BatchRequest& request);

// Whether an engine can ever run the request.
//   InvalidArgument    more blocks than max_blocks, or a window of more than kMaxWindowTokens
//   ResourceExhausted  more pages than the pool has
absl::Status CheckFits(const BatchRequest& request, const EngineLimits& limits);

// One request on its way through a BatchScheduler.
//
// Thread-compatible: one thread at a time has it (whoever took it from a queue), but `cancelled`
// and `watch` are for all.
struct SequenceRun {
  // REQUIRES: `request.sampling` is in range.
  SequenceRun(uint64_t id, BatchRequest request);

  // Takes the place it was given. `fresh` fills the blocks that no entry of `resident` names.
  void Place(int slot_index, std::vector<std::optional<PagePool::Resident>> resident_blocks,
             const std::vector<int32_t>& fresh);
  // What Attach() is to be told, without the stream.
  EnginePrefix Prefix() const;
  // By which a server is chosen (CacheCluster::ServerFor).
  std::vector<Digest> Chain() const;
  // Keys of what the stream brings.
  std::vector<ObjectKey> FetchedKeys() const;

  // Tokens cached when the prompt's prefix is, and the prompt's tokens themselves.
  std::span<const int32_t> cached_prompt() const {
    return std::span(tokens).first(num_prompt_tokens - 1);
  }
  StepInput NextStep() const { return {slot, tokens.back(), !greedy}; }
  // A block leaves the window, by the rule of the parameters.
  bool IsFlushDue() const;
  // Samples from what a step gave and hands the token on; sets `ended` after the last one.
  void TakeToken(const StepOutput& output);

  const uint64_t id;
  const BatchRequest request;
  const int num_prompt_tokens;
  const int max_pages;
  const bool greedy;

  std::atomic<bool> cancelled{false};
  StreamWatch watch;

  // The place; changed under the scheduler's lock.
  int slot = -1;  // none
  std::vector<int32_t> pages;
  std::vector<std::optional<PagePool::Resident>> resident;  // [num_blocks of the prompt]

  // That has the prefix, or is to get it; set once it is fetched or computed.
  CacheClient* cache = nullptr;

  // How the prefix comes: computed here, or fetched; fetched whole, although pages hold some of it.
  bool computes = false;
  bool fetches_all = false;

  std::vector<int32_t> tokens;  // prompt, then what was generated
  int num_cached = 0;           // by the engine
  int num_blocks = 0;           // of these
  Sampler sampler;
  std::optional<absl::Status> ended;
  std::vector<std::unique_ptr<ObjectBuilder>> made;  // with put_back: what pkvd may not have

  Stopwatch since_request;
  Stopwatch since_token;  // the last one
  Stopwatch since_first_token;
  v1::DecodeStats stats;
};

}  // namespace pkv

#endif  // PKV_WORKER_BATCH_SEQUENCE_RUN_H_
