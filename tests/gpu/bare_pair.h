#ifndef PKV_TESTS_GPU_BARE_PAIR_H_
#define PKV_TESTS_GPU_BARE_PAIR_H_

// ncclSend and ncclRecv of the same bytes with nothing around them: what NcclPair is measured by.

#include <chrono>
#include <cstdint>
#include <vector>

#include "proto/transport/nccl/pair_calls.h"
#include "tests/gpu/pair_pages.h"

namespace pkv {

enum class BareMode {
  kWhole,   // one operation over all bytes, which lie in one piece
  kLayers,  // one a layer
  kPages,   // one a page, those of a layer in one group
};

// Until the host's clock shows a multiple of `rest`, which ends at once in all of its processes:
// what comes next finds threads, GPU and links as a hand-off does, which comes now and then. Of 0:
// not at all.
void Rest(std::chrono::milliseconds rest);

// Seconds of each repetition, from the first call until the stream is through, each after a rest;
// rank 0 sends. Opens a blocking communicator for it.
std::vector<double> TimeBarePair(const NcclUniqueId& id, int rank, BareMode mode, int repetitions,
                                 std::chrono::milliseconds rest, const PairPages& pages);

}  // namespace pkv

#endif  // PKV_TESTS_GPU_BARE_PAIR_H_
