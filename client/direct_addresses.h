#ifndef PKV_CLIENT_DIRECT_ADDRESSES_H_
#define PKV_CLIENT_DIRECT_ADDRESSES_H_

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "proto/base/clock.h"
#include "proto/base/sync.h"
#include "proto/base/thread_pool.h"

namespace pkv {

// "name:port" in two. An IPv6 address stands in brackets, which `host` lacks.
struct DirectName {
  std::string host;
  std::string port;  // 1..65535
};
// Of a list separated by commas; empty: none. InvalidArgument names the entry.
absl::StatusOr<std::vector<DirectName>> ParseDirectNames(absl::string_view list);

// Which addresses a client may dial although it has them from a ticket, which anybody may write:
// those it is configured with, and those that their names resolve to.
//
// Names are resolved on a thread of its own, at first and, when asked, again after kResolvedLasts;
// an address that is not known yet is not allowed.
//
// Thread-safe.
class DirectAddresses {
 public:
  static constexpr absl::Duration kResolvedLasts = absl::Seconds(10);
  // Addresses of a name as numbers, IPv6 without brackets; none when it is not known.
  using Resolve = std::function<std::vector<std::string>(const DirectName& name)>;
  // By getaddrinfo.
  static std::vector<std::string> ResolveByDns(const DirectName& name);

  // `clock` outlives this.
  DirectAddresses(std::vector<DirectName> names, Clock* clock, Resolve resolve = ResolveByDns);

  // Never waits. The address must be spelled as a name of the configuration, or as inet_ntop spells
  // numbers, "10.0.0.7:7441", "[fd00::7]:7441".
  bool Allows(absl::string_view address) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void StartResolving() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant after construction.
  const std::vector<DirectName> names_;
  Clock* const clock_;
  const Resolve resolve_;

  Mutex mu_;
  bool is_resolving_ ABSL_GUARDED_BY(mu_) = false;
  absl::Time resolved_at_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  std::set<std::string, std::less<>> resolved_ ABSL_GUARDED_BY(mu_);

  ThreadPool thread_{1};  // uses what stands above
};

}  // namespace pkv

#endif  // PKV_CLIENT_DIRECT_ADDRESSES_H_
