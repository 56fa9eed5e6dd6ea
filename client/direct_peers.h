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
  // Each holds device memory, for staging, of both ends: those being closed count.
  static constexpr size_t kMaxPeers = 16;
  // A peer is closed for another one when nothing came from it for so long. With more peers in turn
  // than there may be, each would otherwise be closed just before it is named again.
  static constexpr absl::Duration kIdle = absl::Minutes(1);
  // How often the log says that a ticket was not followed, and DropDead() looks.
  static constexpr absl::Duration kLogInterval = absl::Minutes(1);
  static constexpr absl::Duration kDropInterval = absl::Seconds(1);
  using Connect = std::function<std::unique_ptr<Connection>(const std::string& address)>;

  // `clock` outlives this. DirectAddresses says what `resolve` does.
  DirectPeers(std::vector<DirectName> names, Connect connect, const NcclPort& gpu, Clock* clock,
              DirectAddresses::Resolve resolve = DirectAddresses::ResolveByDns);
  // Waits for negotiations under way.
  ~DirectPeers();

  // The peer of an address from a ticket, for as long as the caller holds it. Never waits.
  //   FailedPrecondition  it is none of those that may be asked
  //   Unavailable         whether it is one is not known yet
  //   ResourceExhausted   there are kMaxPeers. One that nobody holds and that is idle, the least
  //                       recently used, is being closed, so that there will be room
  absl::StatusOr<std::shared_ptr<DirectPeer>> Find(const std::string& address)
      ABSL_LOCKS_EXCLUDED(mu_);

  // Gives back the device memory of pairs that broke, and closes peers that may not be asked any
  // more: nothing else would before their address is named again. Never waits; does so at most
  // every kDropInterval. Find() calls it too.
  void DropDead() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Entry {
    // shared_ptr: with the gets that use it.
    std::shared_ptr<DirectPeer> peer;
    absl::Time last_use;
  };
  using Peers = std::map<std::string, Entry>;
  // Makes the peer of an address that has none.
  absl::StatusOr<std::shared_ptr<DirectPeer>> Add(const std::string& address)
      ABSL_LOCKS_EXCLUDED(mu_);
  // Has one idle peer closed, unless one is.
  void MakeRoom(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Elsewhere. REQUIRES: nobody else holds it.
  Peers::iterator Close(Peers::iterator peer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Whether the log is to have it; `last` is the last time that it had.
  static bool IsDue(absl::Time now, absl::Duration interval, absl::Time& last);

  // Constant after construction.
  const Connect connect_;
  const NcclPort gpu_;
  Clock* const clock_;
  DirectAddresses addresses_;

  Mutex mu_;
  Peers peers_ ABSL_GUARDED_BY(mu_);
  size_t num_connecting_ ABSL_GUARDED_BY(mu_) = 0, num_closing_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Time refusal_logged_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  absl::Time full_logged_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  absl::Time dropped_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();

  // Where peers end: an abort, or a negotiation under way, takes its time.
  ThreadPool closing_{1};
};

}  // namespace pkv

#endif  // PKV_CLIENT_DIRECT_PEERS_H_
