#ifndef PKV_CLIENT_PLACEMENT_H_
#define PKV_CLIENT_PLACEMENT_H_

// Where a CacheCluster looks for a chain (cache_cluster.h, "Placement").

#include <span>
#include <string>
#include <vector>

#include "pkv/block/digest.h"

namespace pkv {

// The id by which a chain is placed: its 8th, or else 4th, 2nd or 1st. Zero of an empty one.
Digest AnchorOf(std::span<const Digest> chain);

// Indices of all `addresses`: the server that keeps the chain of this anchor, then those that stand
// in for it, in turn.
std::vector<int> RankServers(const Digest& anchor, std::span<const std::string> addresses);

}  // namespace pkv

#endif  // PKV_CLIENT_PLACEMENT_H_
