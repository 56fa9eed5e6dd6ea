#ifndef PKV_WORKER_SEQUENCE_WINDOW_FLUSH_H_
#define PKV_WORKER_SEQUENCE_WINDOW_FLUSH_H_

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "worker/sequence/kv_sequence.h"

namespace pkv {

// StartBlocks, EncodeLayer for every layer and FinishBlocks at one go, without a window object.
// `tokens` are the ids of the whole sequence so far. REQUIRES: the window holds the blocks' tokens.
absl::Status EncodeBlocks(int count, Phase phase, std::span<const int32_t> tokens,
                          KvSequence& sequence);

// After a decode step: makes a block of the tokens that have left the window by the rule of the
// sequence's preset. False when none has left; at most one block a call.
absl::StatusOr<bool> FlushWindow(std::span<const int32_t> tokens, KvSequence& sequence);

}  // namespace pkv

#endif  // PKV_WORKER_SEQUENCE_WINDOW_FLUSH_H_
