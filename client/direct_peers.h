#ifndef PKV_CLIENT_DIRECT_PEERS_H_
#define PKV_CLIENT_DIRECT_PEERS_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/connection.h"
#include "client/direct_addresses.h"
#include "client/nccl_dialer.h"
#include "proto/base/clock.h"
#include "proto/base/sync.h"
#include "proto/base/thread_pool.h"
#include "proto/transport/nccl/nccl_port.h"

namespace pkv {

// A prefill worker that may have on its GPU what a ticket names.
struct DirectPeer {
  DirectPeer(std::unique_ptr<Connection> to, const NcclPort& gpu, Clock* clock)
      : connection(std::move(to)), dialer(connection.get(), gpu, clock) {}

  const std::unique_ptr<Connection> connection;
  NcclDialer dialer;
};

// The prefill workers of which gets may come directly, to one GPU of this process: each with a
// connection and a pair, made when a ticket first names it.
//
// Thread-safe.
class DirectPeers {
 public:
  // Each holds device memory, for staging, of both ends.
  static constexpr size_t kMaxPeers = 16;
  using Connect = std::function<std::unique_ptr<Connection>(const std::string& address)>;

  // `clock` outlives this. DirectAddresses says what `resolve` does.
  DirectPeers(std::vector<DirectName> names, Connect connect, const NcclPort& gpu, Clock* clock,
              DirectAddresses::Resolve resolve = DirectAddresses::ResolveByDns);
  // Waits for negotiations under way.
  ~DirectPeers();

  // The peer of an address from a ticket, for as long as the caller holds it. Never waits; with
  // kMaxPeers, one that nobody holds is closed for it, the least recently used.
  //   FailedPrecondition  it is none of those that may be asked
  //   ResourceExhausted   kMaxPeers are held
  absl::StatusOr<std::shared_ptr<DirectPeer>> Find(const std::string& address)
      ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Entry {
    // shared_ptr: with the gets that use it.
    std::shared_ptr<DirectPeer> peer;
    uint64_t last_use = 0;  // the higher the later
  };
  // Closes the one that was used least recently, elsewhere. False: all are held.
  bool CloseOne() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant after construction.
  const Connect connect_;
  const NcclPort gpu_;
  Clock* const clock_;
  DirectAddresses addresses_;

  Mutex mu_;
  std::map<std::string, Entry> peers_ ABSL_GUARDED_BY(mu_);
  uint64_t num_uses_ ABSL_GUARDED_BY(mu_) = 0;
  bool has_logged_ ABSL_GUARDED_BY(mu_) = false;  // that a ticket named another

  // Where peers end: an abort, or a negotiation under way, takes its time.
  ThreadPool closing_{1};
};

}  // namespace pkv

#endif  // PKV_CLIENT_DIRECT_PEERS_H_
