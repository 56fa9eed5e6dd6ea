#ifndef PKV_WORKER_BATCH_BATCH_REQUEST_H_
#define PKV_WORKER_BATCH_BATCH_REQUEST_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "pkv/block/object_key.h"
#include "pkv/kernels/codec_params.h"
#include "pkv/v1/worker_service.pb.h"
#include "worker/engine/sampler.h"

namespace pkv {

// How a request ended.
struct BatchOutcome {
  absl::Status status;
  v1::DecodeStats stats;
  int num_generated = 0;
};

// A prompt to be continued, with its cached prefix.
struct BatchRequest {
  CodecParams params;
  std::vector<int32_t> tokens;  // the prompt, at least one; all but the last are cached
  // num_tables tables, num_blocks blocks from the start, and the window object when
  // num_window_tokens is positive: blocks and window hold tokens.size() - 1 tokens.
  std::vector<ObjectKey> keys;
  int num_tables = 0, num_blocks = 0, num_window_tokens = 0;
  std::string cache_server;  // CacheClient::address() of the server that has them; may be empty

  // Address of a prefill worker that may have them on its GPU; may be empty, or anything.
  std::string direct_server;

  int max_tokens = 1;
  std::vector<int32_t> end_tokens;  // any of these is the last one
  SamplingParams sampling;
  bool put_back = false;          // store the blocks made here
  bool refuse_recompute = false;  // fail when the cache does not deliver

  // Called once a token, in order, from threads of the scheduler, one at a time: must not block. An
  // error ends the request with it.
  std::function<absl::Status(const SampledToken&)> on_token;
  // Called once, after the last token: from a thread of the scheduler, or from that which cancels.
  std::function<void(const BatchOutcome&)> on_end;
};

}  // namespace pkv

#endif  // PKV_WORKER_BATCH_BATCH_REQUEST_H_
