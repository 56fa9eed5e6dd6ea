#include "client/direct_peers.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"

namespace pkv {
namespace {

// Of a text from a ticket, in the log.
constexpr size_t kMaxLoggedBytes = 128;

}  // namespace

DirectPeers::DirectPeers(std::vector<DirectName> names, Connect connect, const NcclPort& gpu,
                         Clock* clock, DirectAddresses::Resolve resolve)
    : connect_(std::move(connect)),
      gpu_(gpu),
      clock_(clock),
      addresses_(std::move(names), clock, std::move(resolve)) {}

DirectPeers::~DirectPeers() = default;

absl::StatusOr<std::shared_ptr<DirectPeer>> DirectPeers::Find(const std::string& address) {
  const bool is_allowed = addresses_.Allows(address);
  bool logs = false;
  std::shared_ptr<DirectPeer> found;
  {
    MutexLock lock(&mu_);
    if (is_allowed) {
      auto it = peers_.find(address);
      if (it == peers_.end()) {
        if (peers_.size() >= kMaxPeers && !CloseOne()) {
          return absl::ResourceExhaustedError(absl::StrCat(
              peers_.size(), " prefill workers are being read from, limit ", kMaxPeers));
        }
        auto peer = std::make_shared<DirectPeer>(connect_(address), gpu_, clock_);
        it = peers_.emplace(address, Entry{std::move(peer)}).first;
      }
      it->second.last_use = ++num_uses_;
      return it->second.peer;
    }
    logs = !std::exchange(has_logged_, true);
  }
  if (logs) {
    Log(LogLevel::kWarning, "direct: a ticket names a server that is not to be asked; said once",
        {{"address", address.substr(0, kMaxLoggedBytes)}});
  }
  return absl::FailedPreconditionError("the ticket's direct server is none to be asked");
}

bool DirectPeers::CloseOne() {
  auto oldest = peers_.end();
  for (auto it = peers_.begin(); it != peers_.end(); ++it) {
    // Copies are made under the lock, so one that nobody else has stays so.
    if (it->second.peer.use_count() > 1) continue;
    if (oldest == peers_.end() || it->second.last_use < oldest->second.last_use) oldest = it;
  }
  if (oldest == peers_.end()) return false;
  // The function, which is copied, has the last reference.
  closing_.Schedule([peer = std::move(oldest->second.peer)]() mutable { peer.reset(); });
  peers_.erase(oldest);
  return true;
}

}  // namespace pkv
