#ifndef PKV_CLIENT_CACHE_CLUSTER_H_
#define PKV_CLIENT_CACHE_CLUSTER_H_

// Several pkvd side by side: which of them keeps what, and which of them are there.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "pkv/block/digest.h"
#include "pkv/client/client_options.h"

namespace pkv {

class CacheClient;
struct NcclPort;  // proto/transport/nccl/nccl_port.h: one GPU of this process; not installed

enum class ServerState {
  kReady,     // answers
  kDraining,  // still answers but takes no puts, and will end
  kAway,      // did not answer
};

struct ServerStatus {
  std::string address;  // as it was given
  ServerState state = ServerState::kReady;
};

// Counters since creation, for metrics: client side of the same story pkvd tells.
struct ClientCounters {
  uint64_t lookups = 0, gets = 0, puts = 0, retries = 0, failures = 0;
  uint64_t get_bytes = 0, put_bytes = 0, integrity_failures = 0;
  uint64_t shm_gets = 0;        // those that read in place
  uint64_t shm_get_bytes = 0;   // part of get_bytes
  uint64_t shm_fallbacks = 0;   // gets that went over gRPC although the server offers shm
  uint64_t nccl_gets = 0;       // those that came to the GPU whole
  uint64_t nccl_get_bytes = 0;  // part of get_bytes
  uint64_t nccl_fallbacks = 0;  // gets that a pair began, or refused, and gRPC finished
  // Of streams of puts: a Put of much has several.
  uint64_t shm_puts = 0;           // those whose payload went over shm
  uint64_t shm_put_bytes = 0;      // part of put_bytes
  uint64_t shm_put_fallbacks = 0;  // those that went over gRPC although the server offers shm
  // The same from prefill workers' GPUs; a get that one does not have is no fallback.
  uint64_t direct_gets = 0;
  uint64_t direct_get_bytes = 0;  // part of get_bytes, and not of nccl_get_bytes
  uint64_t direct_fallbacks = 0;
  uint64_t direct_refusals = 0;  // gets told to ask a server that is none to be asked
  uint64_t direct_crowded = 0;   // gets whose prefill worker was one too many to have a pair with

  ClientCounters& operator+=(const ClientCounters& other);  // of several clients
};

// One pkvd, or several, each of which keeps whole chains: blocks, the tables they refer to and the
// window behind them stand on one server, so every lookup, get and put of a request goes to that
// one, and servers know nothing of each other.
//
// Placement. A chain is placed by its anchor, the id of its 8th block, or of its 4th, 2nd or 1st
// when it has no more; servers rank by SHA-256("pkv.place.v1\0" || anchor || address), the highest
// first (rendezvous hashing: a server that comes or goes moves the chains it holds and no others).
// The address is the text of the configuration, so all that share servers must name them alike,
// and by names that survive a restart (of pods: pkvd-0.pkvd:7440). A name that resolves to several
// servers is not an address.
//
// Why the 8th block: prompts that begin alike for less than 1,024 tokens, as with one system
// prompt, spread over all servers, each of which keeps that beginning once; prompts that share
// more stay together. On a trace of conversations that all start with the same 512 tokens, three
// servers hit 36.64 % of the blocks, as one server does, with the busiest 5 % above the mean;
// placed by the 1st block one server has everything. What it costs: a prompt that grows past 128,
// 256, 512 or 1,024 tokens in blocks may find its beginning on another server, and is computed.
//
// Failure. Servers are asked every probe_interval whether they are there; one whose calls end with
// Unavailable, or twice in a row with DeadlineExceeded, is taken for away at once. The chains of a
// server that is draining or away go to the next in their ranking, where they miss, are computed
// and stored; it gets them back when it answers again. Nothing is moved between servers.
//
// Thread-safe.
class CacheCluster {
 public:
  // Of all servers in options.address, separated by commas; each has options.num_channels
  // connections. Does not wait for any of them. `gpu`, for CacheClient::StartDeviceGet of each, is
  // copied; null: none. InvalidArgument: an option is out of its range (names it), an address is
  // empty or there twice, there are more than 64, or Transport::kNccl without a GPU.
  static absl::StatusOr<std::unique_ptr<CacheCluster>> Create(const ClientOptions& options,
                                                              const NcclPort* gpu = nullptr);
  virtual ~CacheCluster() = default;

  // The client of the server to use for a chain, from its first to its last call. Choose again for
  // each request: the answer follows the servers' states.
  //   chain  ids of the sequence's blocks from the first on, as many as are known; of a sequence
  //          without a block, the id of its window
  //   hint   CacheClient::address() of the server that is known to have the chain, which is then
  //          chosen unless it is away or not one of these; empty: not known
  // The client lives as long as the cluster. When every server is away, calls fail with
  // Unavailable.
  virtual CacheClient& ServerFor(std::span<const Digest> chain, absl::string_view hint) = 0;

  // All servers, in the order given.
  virtual std::vector<ServerStatus> servers() const = 0;

  // Of all servers' clients together. Calls are in ClientOptions::statistics.
  virtual ClientCounters counters() const = 0;
};

}  // namespace pkv

#endif  // PKV_CLIENT_CACHE_CLUSTER_H_
