#include "client/direct_addresses.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// Entries of a configuration, and addresses of one name.
constexpr size_t kMaxNames = 64;
constexpr size_t kMaxAddresses = 1024;

// Numbers as inet_ntop spells them; empty: they are none of `family`.
std::string Canonical(int family, const std::string& host) {
  unsigned char bytes[sizeof(in6_addr)];
  char text[INET6_ADDRSTRLEN] = "";
  if (inet_pton(family, host.c_str(), bytes) != 1) return "";
  return inet_ntop(family, bytes, text, sizeof(text)) == nullptr ? "" : text;
}

absl::StatusOr<DirectName> ParseName(absl::string_view text) {
  const absl::Status malformed =
      absl::InvalidArgumentError(absl::StrCat("'", text, "' is not name:port"));
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos || colon == 0) return malformed;
  absl::string_view host = text.substr(0, colon);
  const absl::string_view port = text.substr(colon + 1);
  uint32_t number = 0;
  if (!absl::SimpleAtoi(port, &number) || number < 1 || number > 65535) return malformed;
  // " 7441", "+7441" and "07441" would be compared with "7441" for ever.
  if (port != absl::StrCat(number)) return malformed;
  const bool is_bracketed = host.front() == '[' && host.back() == ']' && host.size() > 2;
  if (is_bracketed) {
    std::string numbers = Canonical(AF_INET6, std::string(host.substr(1, host.size() - 2)));
    if (numbers.empty()) return malformed;
    return DirectName{std::move(numbers), std::string(port)};
  }
  // Of another scheme than names have, gRPC would make something else.
  if (host.find_first_of(":/[] ") != absl::string_view::npos) return malformed;
  return DirectName{std::string(host), std::string(port)};
}

std::string Numbers(const sockaddr& address) {
  char text[INET6_ADDRSTRLEN] = "";
  const void* bytes = nullptr;
  if (address.sa_family == AF_INET) {
    bytes = &reinterpret_cast<const sockaddr_in&>(address).sin_addr;
  } else if (address.sa_family == AF_INET6) {
    bytes = &reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
  }
  if (bytes == nullptr || inet_ntop(address.sa_family, bytes, text, sizeof(text)) == nullptr) {
    return "";
  }
  return text;
}

}  // namespace

std::string Spell(const DirectName& name) {
  const bool is_ipv6 = name.host.find(':') != std::string::npos;
  return is_ipv6 ? absl::StrCat("[", name.host, "]:", name.port)
                 : absl::StrCat(name.host, ":", name.port);
}

absl::StatusOr<std::vector<DirectName>> ParseDirectNames(absl::string_view list) {
  std::vector<DirectName> names;
  if (list.empty()) return names;
  for (const absl::string_view part : absl::StrSplit(list, ',')) {
    PKV_ASSIGN_OR_RETURN(DirectName name, ParseName(absl::StripAsciiWhitespace(part)));
    names.push_back(std::move(name));
  }
  if (names.size() > kMaxNames) {
    return absl::InvalidArgumentError(
        absl::StrCat(names.size(), " names of direct peers, at most ", kMaxNames));
  }
  return names;
}

absl::StatusOr<std::vector<std::string>> DirectAddresses::ResolveByDns(const DirectName& name) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  std::vector<std::string> addresses;
  const int error = getaddrinfo(name.host.c_str(), nullptr, &hints, &found);
  if (error == EAI_NONAME || error == EAI_NODATA) return addresses;
  if (error != 0) {
    return absl::UnavailableError(absl::StrCat(name.host, ": ", gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owned(found, freeaddrinfo);
  for (const addrinfo* next = found; next != nullptr && addresses.size() < kMaxAddresses;
       next = next->ai_next) {
    std::string numbers = Numbers(*next->ai_addr);
    if (!numbers.empty()) addresses.push_back(std::move(numbers));
  }
  return addresses;
}

struct DirectAddresses::Shared {
  struct Known {
    std::set<std::string, std::less<>> addresses;  // as Spell() has them
    absl::Time answered_at = absl::InfinitePast();
    bool is_answered = false;  // in the last round
  };

  Shared(std::vector<DirectName> configured, Resolve by)
      : names(std::move(configured)), resolve(std::move(by)), known(names.size()) {}

  // Constant after construction.
  const std::vector<DirectName> names;
  const Resolve resolve;

  Mutex mu;
  CondVar ended;
  bool is_resolving ABSL_GUARDED_BY(mu) = false;
  bool stopping ABSL_GUARDED_BY(mu) = false;
  absl::Time resolved_at ABSL_GUARDED_BY(mu) = absl::InfinitePast();  // the last round's begin
  std::vector<Known> known ABSL_GUARDED_BY(mu);                       // by name
};

DirectAddresses::DirectAddresses(std::vector<DirectName> names, Clock* clock, Resolve resolve)
    : clock_(clock), shared_(std::make_shared<Shared>(std::move(names), std::move(resolve))) {
  MutexLock lock(&mu_);
  {
    MutexLock shared_lock(&shared_->mu);
    shared_->is_resolving = true;
  }
  StartResolving(clock_->MonotonicNow());
}

DirectAddresses::~DirectAddresses() {
  bool is_resolving;
  {
    MutexLock lock(&shared_->mu);
    shared_->stopping = true;
    while (shared_->is_resolving && shared_->ended.WaitWithTimeout(&shared_->mu, kStopPatience)) {
    }
    is_resolving = shared_->is_resolving;
  }
  MutexLock lock(&mu_);
  if (!thread_.joinable()) return;
  // It has what it uses; nothing ends a lookup.
  if (is_resolving) {
    thread_.detach();
  } else {
    thread_.join();
  }
}

void DirectAddresses::StartResolving(absl::Time now) {
  if (thread_.joinable()) thread_.join();  // it has ended
  thread_ = std::thread([shared = shared_, now] { ResolveAll(*shared, now); });
}

void DirectAddresses::ResolveAll(Shared& shared, absl::Time now) {
  for (size_t i = 0; i < shared.names.size(); ++i) {
    {
      MutexLock lock(&shared.mu);
      if (shared.stopping) break;
    }
    const absl::StatusOr<std::vector<std::string>> hosts = shared.resolve(shared.names[i]);
    MutexLock lock(&shared.mu);
    Shared::Known& known = shared.known[i];
    known.is_answered = hosts.ok();
    if (hosts.ok()) {
      known.answered_at = now;
      known.addresses.clear();
      for (const std::string& host : *hosts) {
        known.addresses.insert(Spell({host, shared.names[i].port}));
      }
    } else if (now - known.answered_at > kKeptLonger) {
      known.addresses.clear();
    }
  }
  MutexLock lock(&shared.mu);
  shared.is_resolving = false;
  shared.resolved_at = now;
  shared.ended.SignalAll();
}

DirectAddresses::Verdict DirectAddresses::Judge(absl::string_view address) {
  const auto is_named = [&](const DirectName& name) { return Spell(name) == address; };
  if (std::any_of(shared_->names.begin(), shared_->names.end(), is_named)) {
    return Verdict::kAllowed;
  }
  const absl::Time now = clock_->MonotonicNow();
  MutexLock lock(&mu_);
  bool starts;
  Verdict verdict = Verdict::kRefused;
  {
    MutexLock shared_lock(&shared_->mu);
    const absl::Duration age = now - shared_->resolved_at;
    starts = !shared_->is_resolving && age >= kResolvedLasts;
    if (starts) shared_->is_resolving = true;
    if (age >= kAnswerStands) {
      verdict = Verdict::kNotKnownYet;
    } else {
      for (const Shared::Known& known : shared_->known) {
        if (known.addresses.find(address) != known.addresses.end()) {
          verdict = Verdict::kAllowed;
          break;
        }
        if (!known.is_answered) verdict = Verdict::kNotKnownYet;
      }
    }
  }
  if (starts) StartResolving(now);
  return verdict;
}

}  // namespace pkv
