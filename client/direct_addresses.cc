#include "client/direct_addresses.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <memory>
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

std::string Spell(absl::string_view host, absl::string_view port) {
  const bool is_ipv6 = host.find(':') != absl::string_view::npos;
  return is_ipv6 ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
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
  const bool is_bracketed = host.front() == '[' && host.back() == ']' && host.size() > 2;
  if (is_bracketed) host = host.substr(1, host.size() - 2);
  // Of another scheme than names have, gRPC would make something else.
  if (!is_bracketed && host.find_first_of(":/[]") != absl::string_view::npos) return malformed;
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

std::vector<std::string> DirectAddresses::ResolveByDns(const DirectName& name) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  std::vector<std::string> addresses;
  if (getaddrinfo(name.host.c_str(), nullptr, &hints, &found) != 0) return addresses;
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owned(found, freeaddrinfo);
  for (const addrinfo* next = found; next != nullptr && addresses.size() < kMaxAddresses;
       next = next->ai_next) {
    std::string numbers = Numbers(*next->ai_addr);
    if (!numbers.empty()) addresses.push_back(std::move(numbers));
  }
  return addresses;
}

DirectAddresses::DirectAddresses(std::vector<DirectName> names, Clock* clock, Resolve resolve)
    : names_(std::move(names)), clock_(clock), resolve_(std::move(resolve)) {
  MutexLock lock(&mu_);
  StartResolving();
}

void DirectAddresses::StartResolving() {
  is_resolving_ = true;
  thread_.Schedule([this] {
    std::set<std::string, std::less<>> resolved;
    for (const DirectName& name : names_) {
      for (const std::string& host : resolve_(name)) resolved.insert(Spell(host, name.port));
    }
    MutexLock lock(&mu_);
    is_resolving_ = false;
    resolved_at_ = clock_->MonotonicNow();
    resolved_ = std::move(resolved);
  });
}

bool DirectAddresses::Allows(absl::string_view address) {
  const auto is_named = [&](const DirectName& name) {
    return Spell(name.host, name.port) == address;
  };
  if (std::any_of(names_.begin(), names_.end(), is_named)) return true;
  MutexLock lock(&mu_);
  if (!is_resolving_ && clock_->MonotonicNow() - resolved_at_ >= kResolvedLasts) StartResolving();
  return resolved_.find(address) != resolved_.end();
}

}  // namespace pkv
