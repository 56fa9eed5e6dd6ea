#include "kvstore/service/shm_server.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/transport/host_identity.h"

namespace pkv {
namespace {

constexpr size_t kReadBytes = size_t{64} << 10;
constexpr absl::Duration kWaitMax = absl::Seconds(1);

absl::Status SystemError(absl::string_view what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
}

// Why a connection ends whose message was answered with an error.
ShmEnd EndOf(const absl::Status& error) {
  if (absl::IsPermissionDenied(error)) return ShmEnd::kRefused;
  return absl::IsResourceExhausted(error) ? ShmEnd::kFull : ShmEnd::kMalformed;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ShmServer>> ShmServer::Start(const ShmServerOptions& options,
                                                            BlockStore* store,
                                                            ServiceMetrics* metrics, Clock* clock) {
  if (options.path.empty() || options.path.front() != '/') {
    return absl::InvalidArgumentError(
        absl::StrCat("shm socket \"", options.path, "\": readers need its path from the root on"));
  }
  const ShmLimits& limits = options.limits;
  if (options.max_connections < 1 || limits.connection_pinned_bytes == 0 ||
      limits.total_pinned_bytes < limits.connection_pinned_bytes ||
      limits.silence < absl::Milliseconds(100) || limits.pin_age < limits.silence) {
    return absl::InvalidArgumentError(absl::StrCat(
        "shm: ", options.max_connections, " connections, ", limits.connection_pinned_bytes, " of ",
        limits.total_pinned_bytes, " bytes each, silence ", absl::FormatDuration(limits.silence),
        " (at least 100ms), pin age ", absl::FormatDuration(limits.pin_age), " (at least that)"));
  }
  ShmShared shared{
      .store = store, .metrics = metrics, .clock = clock, .limits = limits, .disk = options.disk};
  PKV_ASSIGN_OR_RETURN(shared.token, DrawShmToken());
  std::unique_ptr<ShmServer> server(new ShmServer(options, shared));
  PKV_RETURN_IF_ERROR(server->Open(store));
  return server;
}

ShmServer::ShmServer(const ShmServerOptions& options, const ShmShared& shared)
    : options_(options), host_id_(HostIdentity()), stages_(shared.clock), shared_(shared) {
  shared_.stages = &stages_;
}

ShmServer::~ShmServer() { Stop(); }

absl::Status ShmServer::Open(BlockStore* store) {
  // Read-only although the arena is sealed: what a client cannot do, it cannot try by mistake.
  arena_ = FileDescriptor(
      open(absl::StrCat("/proc/self/fd/", store->arena_fd()).c_str(), O_RDONLY | O_CLOEXEC));
  if (!arena_) return SystemError("open the arena for reading");
  wake_ = std::make_shared<const FileDescriptor>(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!*wake_) return SystemError("eventfd");
  shared_.wake = [wake = wake_] { eventfd_write(wake->get(), 1); };
  PKV_ASSIGN_OR_RETURN(listener_, Listener::Bind(absl::StrCat("unix:", options_.path),
                                                 options_.any_user ? 0666 : 0600));
  thread_ = std::thread([this] { Run(); });
  listener_->Start(
      [this](int fd) {
        {
          MutexLock lock(&mu_);
          accepted_.emplace_back(fd);
        }
        shared_.wake();
      },
      [this] { shared_.metrics->AcceptFailed(); });
  return absl::OkStatus();
}

v1::HandoffOpenResponse ShmServer::Answer(const v1::HandoffOpenRequest& request) const {
  v1::HandoffOpenResponse response;
  if (request.shm_version() < kShmVersion) {
    response.set_reason(absl::StrCat("the reader speaks version ", request.shm_version(),
                                     " of shm, this server ", kShmVersion));
  } else if (host_id_.empty() || request.host_id() != host_id_) {
    response.set_reason("the reader is on another host");
  } else {
    v1::ShmOffer* offer = response.mutable_shm();
    offer->set_version(kShmVersion);
    offer->set_host_id(host_id_);
    offer->set_socket_path(options_.path);
    offer->set_token(shared_.token);
  }
  return response;
}

void ShmServer::StopListening() {
  if (listener_ != nullptr) listener_->Stop();
}

void ShmServer::Stop() {
  StopListening();
  {
    MutexLock lock(&mu_);
    stopping_ = true;
  }
  if (shared_.wake) shared_.wake();
  if (thread_.joinable()) thread_.join();
}

bool ShmServer::IsStopping() {
  MutexLock lock(&mu_);
  return stopping_;
}

void ShmServer::Run() {
  while (!IsStopping()) {
    WaitForWork();
    std::vector<FileDescriptor> accepted;
    {
      MutexLock lock(&mu_);
      accepted.swap(accepted_);
    }
    for (FileDescriptor& socket : accepted) Adopt(std::move(socket));
    for (auto peer = peers_.begin(); peer != peers_.end();) {
      const auto current = peer++;
      ShmEnd reason = ShmEnd::kClient;
      if (!Serve(*current, reason)) End(current, reason);
    }
    EndExpired();
    shared_.metrics->SetShm(peers_.size(), shared_.pinned_bytes, stages_.bytes());
  }
  while (!peers_.empty()) End(peers_.begin(), ShmEnd::kStopped);
  // Puts under way keep their stages.
  shared_.metrics->SetShm(0, 0, stages_.bytes());
}

void ShmServer::WaitForWork() {
  std::vector<pollfd> polled = {{wake_->get(), POLLIN, 0}};
  absl::Duration wait = kWaitMax;
  const absl::Time now = shared_.clock->MonotonicNow();
  for (const Peer& peer : peers_) {
    const bool sends = !peer.unsent.empty();
    polled.push_back(
        {peer.socket.get(), static_cast<int16_t>((sends ? POLLOUT : POLLIN) | POLLRDHUP), 0});
    wait = std::min(wait, peer.session->expiry().time - now);
  }
  const int64_t wait_ms = absl::ToInt64Milliseconds(absl::Ceil(wait, absl::Milliseconds(1)));
  poll(polled.data(), polled.size(), static_cast<int>(std::max<int64_t>(wait_ms, 0)));
  eventfd_t ignored;
  eventfd_read(wake_->get(), &ignored);
}

void ShmServer::Adopt(FileDescriptor socket) {
  const absl::StatusOr<PeerCredentials> peer = PeerOf(socket.get());
  const bool is_ours = peer.ok() && (peer->uid == geteuid() || peer->uid == 0);
  if (!options_.any_user && !is_ours) {
    shared_.metrics->ShmEnded(ShmEnd::kRefused);
    return;
  }
  if (peers_.size() >= static_cast<size_t>(options_.max_connections)) {
    shared_.metrics->ShmEnded(ShmEnd::kFull);
    return;
  }
  peers_.push_back({std::move(socket), {}, {}, std::make_unique<ShmSession>(&shared_)});
}

bool ShmServer::Serve(Peer& peer, ShmEnd& reason) {
  for (const v1::ShmMessage& answer : peer.session->TakeReady()) {
    peer.unsent += EncodeShmMessage(answer);
  }
  if (!peer.unsent.empty()) return !IsHungUp(peer.socket.get()) && Flush(peer);
  return Receive(peer, reason);
}

bool ShmServer::Receive(Peer& peer, ShmEnd& reason) {
  std::array<std::byte, kReadBytes> buffer;
  const auto received = ReceiveSome(peer.socket.get(), buffer, /*wait=*/false, /*takes_fd=*/false);
  if (!received.ok()) return false;
  if (received->would_block) return true;
  if (received->num_bytes == 0) return false;
  peer.reader.Add(std::span(buffer).first(received->num_bytes));
  return HandleMessages(peer, reason);
}

// At most as many as one read brings, of at least six bytes each. Their answers are a few times as
// long at most, and nothing more is read before they have left.
bool ShmServer::HandleMessages(Peer& peer, ShmEnd& reason) {
  for (;;) {
    const auto message = peer.reader.Next();
    if (message.ok() && !message->has_value()) return Flush(peer);
    const absl::StatusOr<std::optional<v1::ShmMessage>> answer =
        message.ok() ? peer.session->OnMessage(**message) : message;
    if (!answer.ok()) {
      reason = EndOf(answer.status());
      if (reason == ShmEnd::kFull) {
        // An empty welcome: the client is to know that nothing but room is lacking. It asks again
        // and again, and is counted: nothing is logged.
        v1::ShmMessage full;
        full.mutable_welcome();
        const std::string bytes = EncodeShmMessage(full);
        SendSome(peer.socket.get(), std::as_bytes(std::span(bytes))).IgnoreError();
        return false;
      }
      Log(LogLevel::kWarning, "shm: connection refused", {{"reason", answer.status().ToString()}});
      return false;
    }
    if (!answer->has_value()) continue;
    const std::string bytes = EncodeShmMessage(**answer);
    if ((*answer)->has_welcome()) {
      const ShmStage* stage = peer.session->stage();
      // The first bytes of a connection: there is room for all of them.
      const auto sent = SendSome(peer.socket.get(), std::as_bytes(std::span(bytes)),
                                 stage != nullptr ? stage->fd() : arena_.get());
      if (!sent.ok() || *sent != bytes.size()) return false;
      continue;
    }
    peer.unsent += bytes;
  }
}

bool ShmServer::Flush(Peer& peer) {
  if (peer.unsent.empty()) return true;
  const auto sent = SendSome(peer.socket.get(), std::as_bytes(std::span(peer.unsent)));
  if (!sent.ok()) return false;
  peer.unsent.erase(0, *sent);
  return true;
}

void ShmServer::EndExpired() {
  const absl::Time now = shared_.clock->MonotonicNow();
  for (auto peer = peers_.begin(); peer != peers_.end();) {
    const auto current = peer++;
    const ShmSession::Expiry expiry = current->session->expiry();
    if (expiry.time > now) continue;
    // A client that puts nothing is as it should be, and comes back.
    if (expiry.reason != ShmEnd::kIdle) {
      Log(LogLevel::kWarning, "shm: connection expired",
          {{"pinned_bytes", current->session->pinned_bytes()},
           {"reason", expiry.reason == ShmEnd::kHeld ? "held" : "silent"}});
    }
    End(current, expiry.reason);
  }
}

void ShmServer::End(std::list<Peer>::iterator peer, ShmEnd reason) {
  // In this order: the client must be able to tell before anything can take the pinned bytes'
  // place.
  shutdown(peer->socket.get(), SHUT_RDWR);
  peer->session.reset();
  peers_.erase(peer);
  shared_.metrics->ShmEnded(reason);
}

}  // namespace pkv
