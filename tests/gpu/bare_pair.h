#ifndef PKV_TESTS_GPU_BARE_PAIR_H_
#define PKV_TESTS_GPU_BARE_PAIR_H_

// ncclSend and ncclRecv of the same bytes with nothing around them: what NcclPair is measured by.

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

// Seconds of each repetition, from the first call until the stream is through; rank 0 sends. Opens
// a blocking communicator for it.
std::vector<double> TimeBarePair(const NcclUniqueId& id, int rank, BareMode mode, int repetitions,
                                 const PairPages& pages);

}  // namespace pkv

#endif  // PKV_TESTS_GPU_BARE_PAIR_H_
