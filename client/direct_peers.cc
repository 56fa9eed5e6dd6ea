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
  DropDead();
  const DirectAddresses::Verdict verdict = addresses_.Judge(address);
  if (verdict == DirectAddresses::Verdict::kAllowed) return Add(address);
  if (verdict == DirectAddresses::Verdict::kNotKnownYet) {
    return absl::UnavailableError("the names of direct servers are being looked up");
  }
  bool logs;
  {
    MutexLock lock(&mu_);
    logs = IsDue(clock_->MonotonicNow(), kLogInterval, refusal_logged_);
  }
  if (logs) {
    Log(LogLevel::kWarning, "direct: tickets name a server that is not to be asked",
        {{"address", address.substr(0, kMaxLoggedBytes)}});
  }
  return absl::FailedPreconditionError("the ticket's direct server is none to be asked");
}

absl::StatusOr<std::shared_ptr<DirectPeer>> DirectPeers::Add(const std::string& address) {
  const absl::Time now = clock_->MonotonicNow();
  bool logs = false, is_full = false;
  {
    MutexLock lock(&mu_);
    const auto found = peers_.find(address);
    if (found != peers_.end()) {
      found->second.last_use = now;
      return found->second.peer;
    }
    is_full = peers_.size() + num_connecting_ + num_closing_ >= kMaxPeers;
    if (is_full) {
      MakeRoom(now);
      logs = IsDue(now, kLogInterval, full_logged_);
    } else {
      ++num_connecting_;
    }
  }
  if (is_full) {
    const absl::Status full =
        absl::ResourceExhaustedError(absl::StrCat(kMaxPeers, " prefill workers have pairs"));
    if (logs) {
      Log(LogLevel::kWarning, "direct: a ticket's server is not asked",
          {{"reason", full.ToString()}});
    }
    return full;
  }
  // Outlives the lock, if another call was first.
  auto made = std::make_shared<DirectPeer>(connect_(address), gpu_, clock_);
  MutexLock lock(&mu_);
  --num_connecting_;
  Entry& entry = peers_.try_emplace(address, Entry{made, now}).first->second;
  entry.last_use = now;
  return entry.peer;
}

void DirectPeers::DropDead() {
  const absl::Time now = clock_->MonotonicNow();
  MutexLock lock(&mu_);
  if (!IsDue(now, kDropInterval, dropped_)) return;
  for (auto it = peers_.begin(); it != peers_.end();) {
    // Copies are made under the lock, so one that nobody else has stays so.
    if (it->second.peer.use_count() == 1 &&
        addresses_.Judge(it->first) == DirectAddresses::Verdict::kRefused) {
      it = Close(it);
      continue;
    }
    // The peer stays, which knows how long not to dial, and the link's connection with it.
    if (auto broken = it->second.peer->dialer.TakeBroken(); broken != nullptr) {
      closing_.Schedule([peer = it->second.peer, link = std::move(broken)]() mutable {
        link.reset();
        peer.reset();
      });
    }
    ++it;
  }
}

void DirectPeers::MakeRoom(absl::Time now) {
  if (num_closing_ > 0) return;
  auto oldest = peers_.end();
  for (auto it = peers_.begin(); it != peers_.end(); ++it) {
    if (it->second.peer.use_count() > 1 || now - it->second.last_use < kIdle) continue;
    if (oldest == peers_.end() || it->second.last_use < oldest->second.last_use) oldest = it;
  }
  if (oldest != peers_.end()) Close(oldest);
}

DirectPeers::Peers::iterator DirectPeers::Close(Peers::iterator peer) {
  ++num_closing_;
  // The function, which is copied, has the last reference.
  closing_.Schedule([this, last = std::move(peer->second.peer)]() mutable {
    last.reset();
    MutexLock lock(&mu_);
    --num_closing_;
  });
  return peers_.erase(peer);
}

bool DirectPeers::IsDue(absl::Time now, absl::Duration interval, absl::Time& last) {
  if (now - last < interval) return false;
  last = now;
  return true;
}

}  // namespace pkv
