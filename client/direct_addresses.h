#ifndef PKV_CLIENT_DIRECT_ADDRESSES_H_
#define PKV_CLIENT_DIRECT_ADDRESSES_H_

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "proto/base/clock.h"
#include "proto/base/sync.h"

namespace pkv {

// "name:port" in two. An IPv6 address stands in brackets, which `host` lacks.
struct DirectName {
  std::string host;  // numbers as inet_ntop spells them
  std::string port;  // 1..65535, digits alone, the first not 0
};
// Of a list separated by commas; empty: none. InvalidArgument names the entry.
absl::StatusOr<std::vector<DirectName>> ParseDirectNames(absl::string_view list);
// As tickets and DirectAddresses spell it: "10.0.0.7:7441", "[fd00::7]:7441".
std::string Spell(const DirectName& name);

// Which addresses a client may dial although it has them from a ticket, which anybody may write:
// those it is configured with, and those that their names resolve to.
//
// Names are resolved, one after another, on a thread of its own: at first and, when asked, again
// after kResolvedLasts. A name that cannot be looked up keeps what it resolved to for kKeptLonger.
//
// Thread-safe.
class DirectAddresses {
 public:
  static constexpr absl::Duration kResolvedLasts = absl::Seconds(10);
  // Nobody asked for so long: what was found is no answer any more.
  static constexpr absl::Duration kAnswerStands = absl::Seconds(30);
  static constexpr absl::Duration kKeptLonger = absl::Minutes(1);
  // How long the end of this waits for a name that is being looked up.
  static constexpr absl::Duration kStopPatience = absl::Seconds(1);

  // Addresses of a name as numbers, IPv6 without brackets; none: there is no such name.
  //   Unavailable  that is not known now
  using Resolve = std::function<absl::StatusOr<std::vector<std::string>>(const DirectName& name)>;
  // By getaddrinfo, which may take some ten seconds.
  static absl::StatusOr<std::vector<std::string>> ResolveByDns(const DirectName& name);

  // `clock` outlives this. What `resolve` refers to outlives its last call, which may come
  // kStopPatience before this is destroyed and end later.
  DirectAddresses(std::vector<DirectName> names, Clock* clock, Resolve resolve = ResolveByDns);
  ~DirectAddresses();
  DirectAddresses(const DirectAddresses&) = delete;
  DirectAddresses& operator=(const DirectAddresses&) = delete;

  enum class Verdict {
    kAllowed,
    kRefused,
    kNotKnownYet  // names are being looked up, or one of them cannot be
  };
  // Never waits. The address must be spelled as Spell() does.
  Verdict Judge(absl::string_view address) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Shared;
  // The thread: looks up what began at `now`.
  static void ResolveAll(Shared& shared, absl::Time now);
  void StartResolving(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  Clock* const clock_;
  // shared_ptr: with a thread that is left behind in a lookup.
  const std::shared_ptr<Shared> shared_;

  Mutex mu_;  // before Shared::mu
  std::thread thread_ ABSL_GUARDED_BY(mu_);
};

}  // namespace pkv

#endif  // PKV_CLIENT_DIRECT_ADDRESSES_H_
