#include "client/placement.h"

#include <algorithm>
#include <numeric>

namespace pkv {
namespace {

constexpr size_t kLastAnchor = 8;        // blocks: 1,024 tokens
constexpr char kTag[] = "pkv.place.v1";  // hashed with its terminating zero

}  // namespace

Digest AnchorOf(std::span<const Digest> chain) {
  if (chain.empty()) return {};
  size_t anchor = kLastAnchor;
  while (anchor > chain.size()) anchor /= 2;
  return chain[anchor - 1];
}

std::vector<int> RankServers(const Digest& anchor, std::span<const std::string> addresses) {
  std::vector<Digest> scores;
  for (const std::string& address : addresses) {
    scores.push_back(Sha256({std::as_bytes(std::span(kTag)), std::as_bytes(std::span(anchor.bytes)),
                             std::as_bytes(std::span(address))}));
  }
  std::vector<int> ranking(addresses.size());
  std::iota(ranking.begin(), ranking.end(), 0);
  std::sort(ranking.begin(), ranking.end(), [&](int a, int b) { return scores[a] > scores[b]; });
  return ranking;
}

}  // namespace pkv
