#include "client/shm_link.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "pkv/block/aligned_buffer.h"
#include "proto/base/status_macros.h"
#include "proto/transport/convert.h"

namespace pkv {
namespace {

constexpr size_t kReadBytes = size_t{64} << 10;
constexpr uint64_t kMaxMappedBytes = uint64_t{1} << 46;
constexpr absl::Duration kSendTimeout = absl::Seconds(1);
// Between the end of a process's connections and the end of the process.
constexpr int kExitPatienceMs = 1000;
// Three chances to be heard before a server loses patience.
constexpr int kRenewsPerSilence = 3;
constexpr absl::Duration kRenewMin = absl::Milliseconds(10);

absl::Status SystemError(absl::string_view what) {
  return absl::UnavailableError(absl::StrCat("shm: ", what, ": ", std::strerror(errno)));
}

int64_t WholeMilliseconds(absl::Duration duration) {
  return std::max<int64_t>(0,
                           absl::ToInt64Milliseconds(absl::Ceil(duration, absl::Milliseconds(1))));
}

bool IsReadable(int fd, int timeout_ms) {
  pollfd polled{fd, POLLIN, 0};
  return poll(&polled, 1, timeout_ms) == 1;
}

}  // namespace

absl::StatusOr<std::shared_ptr<ShmLink>> ShmLink::Connect(const v1::ShmOffer& offer, ShmUse use,
                                                          absl::Duration timeout, Clock* clock) {
  PKV_ASSIGN_OR_RETURN(FileDescriptor socket, ConnectLocal(offer.socket_path(), timeout));
  // shared_ptr: streams keep the link, and with it the mapping that their frames are in.
  std::shared_ptr<ShmLink> link(new ShmLink(std::move(socket), clock));
  PKV_ASSIGN_OR_RETURN(const v1::ShmWelcome welcome, link->Greet(offer, use, timeout));
  if (use == ShmUse::kGets) {
    PKV_RETURN_IF_ERROR(link->Map(welcome.arena_bytes(), PROT_READ));
  } else {
    PKV_RETURN_IF_ERROR(link->MapStage(welcome));
  }
  link->WatchServer();
  const absl::Duration renew_every =
      std::max(absl::Milliseconds(welcome.silence_ms()) / kRenewsPerSilence, kRenewMin);
  link->thread_ = std::thread([raw = link.get(), renew_every] { raw->Run(renew_every); });
  return link;
}

ShmLink::ShmLink(FileDescriptor socket, Clock* clock) : socket_(std::move(socket)), clock_(clock) {}

ShmLink::~ShmLink() {
  Break();
  if (thread_.joinable()) thread_.join();
  if (!memory_.empty()) munmap(memory_.data(), memory_.size());
}

absl::StatusOr<v1::ShmWelcome> ShmLink::Greet(const v1::ShmOffer& offer, ShmUse use,
                                              absl::Duration timeout) {
  v1::ShmMessage hello;
  hello.mutable_hello()->set_version(kShmVersion);
  hello.mutable_hello()->set_token(offer.token());
  hello.mutable_hello()->set_for_puts(use == ShmUse::kPuts);
  PKV_RETURN_IF_ERROR(Send(hello));
  const absl::Time deadline = clock_->MonotonicNow() + timeout;
  std::array<std::byte, 512> buffer;
  for (;;) {
    PKV_ASSIGN_OR_RETURN(const std::optional<v1::ShmMessage> message, reader_.Next());
    if (message.has_value()) {
      if (message->has_welcome()) return message->welcome();
      return absl::DataLossError("shm: the server's first message is no welcome");
    }
    auto received = ReceiveSome(socket_.get(), buffer, /*wait=*/true, /*takes_fd=*/true);
    PKV_RETURN_IF_ERROR(received.status());
    if (received->num_bytes == 0 || clock_->MonotonicNow() >= deadline) {
      return absl::UnavailableError(absl::StrCat(
          "shm: who listens on ", offer.socket_path(),
          received->would_block ? " does not answer" : " is not the server asked, or has no room"));
    }
    if (received->passed_fd) received_fd_ = std::move(received->passed_fd);
    reader_.Add(std::span(buffer).first(received->num_bytes));
  }
}

absl::Status ShmLink::Map(uint64_t bytes, int protection) {
  if (!received_fd_) return absl::DataLossError("shm: no descriptor came with the welcome");
  struct stat info {};
  if (fstat(received_fd_.get(), &info) != 0) return SystemError("fstat of the server's memory");
  const int seals = fcntl(received_fd_.get(), F_GET_SEALS);
  // A file that shrinks under a mapping ends whoever reads or writes there.
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || bytes == 0 || bytes > kMaxMappedBytes ||
      static_cast<uint64_t>(info.st_size) < bytes) {
    return absl::DataLossError(absl::StrCat("shm: a file of ", info.st_size, " bytes, said to be ",
                                            bytes, ", with seals ", seals));
  }
  void* mapped = mmap(nullptr, bytes, protection, MAP_SHARED, received_fd_.get(), 0);
  if (mapped == MAP_FAILED) return SystemError("mmap of the server's memory");
  memory_ = {static_cast<std::byte*>(mapped), bytes};
  received_fd_.Close();
  return absl::OkStatus();
}

absl::Status ShmLink::MapStage(const v1::ShmWelcome& welcome) {
  if (welcome.stage_token().empty() && welcome.arena_bytes() > 0) {
    return absl::FailedPreconditionError("shm: the server does not know puts over it");
  }
  if (welcome.stage_token().empty()) {
    return absl::ResourceExhaustedError("shm: the server has no stage left");
  }
  PKV_RETURN_IF_ERROR(Map(welcome.stage_bytes(), PROT_READ | PROT_WRITE));
  stage_token_ = welcome.stage_token();
  MutexLock lock(&mu_);
  is_window_taken_.assign(memory_.size() / kShmWindowBytes, false);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ShmLink::Window>> ShmLink::TakeWindow() {
  MutexLock lock(&mu_);
  // The first one: what is never used takes no memory.
  const auto found = std::find(is_window_taken_.begin(), is_window_taken_.end(), false);
  if (found == is_window_taken_.end()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "shm: ", is_window_taken_.size(), " puts are under way, as many as there may be"));
  }
  *found = true;
  return std::make_unique<Window>(this, static_cast<int>(found - is_window_taken_.begin()));
}

void ShmLink::ReturnWindow(int index) {
  MutexLock lock(&mu_);
  is_window_taken_[index] = false;
}

void ShmLink::WatchServer() {
  const absl::StatusOr<PeerCredentials> peer = PeerOf(socket_.get());
  if (!peer.ok() || peer->pid <= 0) return;
  FileDescriptor process(static_cast<int>(syscall(SYS_pidfd_open, peer->pid, 0)));
  // Of the server, and not of a later process with its number, if the server was there after it.
  if (process && !broken()) server_process_ = std::move(process);
}

absl::Status ShmLink::CheckHeld() {
  // What the caller read before is not to be read after the socket was looked at.
  std::atomic_thread_fence(std::memory_order_acquire);
  if (!broken() || server_ended_) return absl::OkStatus();
  // A process that ends closes its sockets a moment before it counts as ended.
  if (!is_lost_ && server_process_ && IsReadable(server_process_.get(), kExitPatienceMs)) {
    server_ended_ = true;
    return absl::OkStatus();
  }
  is_lost_ = true;
  return absl::AbortedError("shm: the server took its memory back: start the get again");
}

bool ShmLink::usable() const {
  if (broken()) return false;
  MutexLock lock(&mu_);
  return num_abandoned_ == 0 && !stopped_;
}

absl::StatusOr<std::unique_ptr<ShmLink::Pin>> ShmLink::PinObjects(
    std::span<const ObjectKey> keys, absl::Time deadline, const std::atomic<bool>& cancelled) {
  uint64_t pin_id;
  {
    MutexLock lock(&mu_);
    pin_id = next_pin_id_++;
    pending_[pin_id];
  }
  v1::ShmMessage message;
  message.mutable_pin()->set_pin_id(pin_id);
  for (const ObjectKey& key : keys) *message.mutable_pin()->add_objects() = ToProto(key);
  // If this fails the link is broken, which the wait finds.
  Send(message).IgnoreError();

  v1::ShmPinned answer;
  {
    MutexLock lock(&mu_);
    for (;;) {
      Pending& pending = pending_[pin_id];
      if (pending.answered) break;
      const absl::Time now = clock_->MonotonicNow();
      absl::Status status;
      if (stopped_) {
        pending_.erase(pin_id);
        return absl::UnavailableError("shm: the server is gone");
      }
      if (cancelled) status = absl::CancelledError("get cancelled by its owner");
      if (now >= deadline) status = absl::DeadlineExceededError("shm: no answer from the server");
      if (!status.ok()) {
        pending.abandoned = true;
        ++num_abandoned_;
        return status;
      }
      changed_.WaitWithTimeout(&mu_, deadline - now);
    }
    answer = std::move(pending_[pin_id].answer);
    pending_.erase(pin_id);
  }
  if (answer.code() != 0) {
    return absl::Status(static_cast<absl::StatusCode>(answer.code()), answer.message());
  }
  auto pin = std::make_unique<Pin>(this, pin_id);
  PKV_RETURN_IF_ERROR(CheckExtents(answer, keys.size()));
  pin->extents.assign(answer.extents().begin(), answer.extents().end());
  return pin;
}

absl::Status ShmLink::CheckExtents(const v1::ShmPinned& answer, size_t num_keys) const {
  if (static_cast<size_t>(answer.extents_size()) != num_keys) {
    return absl::DataLossError(
        absl::StrCat("shm: ", answer.extents_size(), " extents for ", num_keys, " objects"));
  }
  for (const v1::ShmExtent& extent : answer.extents()) {
    if (extent.code() != 0) continue;
    if (extent.bytes() > memory_.size() || extent.offset() > memory_.size() - extent.bytes() ||
        extent.offset() % kFrameAlignment != 0) {
      return absl::DataLossError(absl::StrCat("shm: object at ", extent.offset(), " of ",
                                              extent.bytes(), " bytes, arena of ", memory_.size()));
    }
  }
  return absl::OkStatus();
}

void ShmLink::Unpin(uint64_t pin_id) {
  v1::ShmMessage message;
  message.mutable_unpin()->set_pin_id(pin_id);
  Send(message).IgnoreError();
}

void ShmLink::ReportDamage(uint64_t pin_id, int object_index) {
  v1::ShmMessage message;
  message.mutable_damaged()->set_pin_id(pin_id);
  message.mutable_damaged()->set_object_index(static_cast<uint32_t>(object_index));
  Send(message).IgnoreError();
}

absl::Status ShmLink::Send(const v1::ShmMessage& message) {
  const std::string bytes = EncodeShmMessage(message);
  std::span<const std::byte> left = std::as_bytes(std::span(bytes));
  const absl::Time deadline = clock_->MonotonicNow() + kSendTimeout;
  MutexLock lock(&send_mu_);
  while (!left.empty()) {
    const auto sent = SendSome(socket_.get(), left);
    if (!sent.ok()) return sent.status();
    left = left.subspan(*sent);
    const absl::Duration wait = deadline - clock_->MonotonicNow();
    if (left.empty()) break;
    if (wait <= absl::ZeroDuration()) {
      // Half a message may have left: nothing can follow it.
      Break();
      return absl::UnavailableError("shm: the server does not read");
    }
    pollfd polled{socket_.get(), POLLOUT, 0};
    poll(&polled, 1, static_cast<int>(WholeMilliseconds(wait)));
  }
  return absl::OkStatus();
}

void ShmLink::Break() { shutdown(socket_.get(), SHUT_RDWR); }

void ShmLink::Wake() {
  MutexLock lock(&mu_);
  changed_.SignalAll();
}

void ShmLink::Run(absl::Duration renew_every) {
  v1::ShmMessage renew;
  renew.mutable_renew();
  absl::Time next_renew = clock_->MonotonicNow() + renew_every;
  for (;;) {
    const absl::Duration wait = next_renew - clock_->MonotonicNow();
    if (wait <= absl::ZeroDuration()) {
      if (!Send(renew).ok()) break;
      next_renew = clock_->MonotonicNow() + renew_every;
    } else if (IsReadable(socket_.get(), static_cast<int>(WholeMilliseconds(wait))) && !Receive()) {
      break;
    }
  }
  Break();
  MutexLock lock(&mu_);
  stopped_ = true;
  changed_.SignalAll();
}

bool ShmLink::Receive() {
  std::array<std::byte, kReadBytes> buffer;
  const auto received = ReceiveSome(socket_.get(), buffer, /*wait=*/false, /*takes_fd=*/false);
  if (!received.ok()) return false;
  if (received->would_block) return true;
  if (received->num_bytes == 0) return false;
  reader_.Add(std::span(buffer).first(received->num_bytes));
  for (;;) {
    const auto message = reader_.Next();
    if (!message.ok()) return false;
    if (!message->has_value()) return true;
    if (!OnMessage(**message).ok()) return false;
  }
}

absl::Status ShmLink::OnMessage(const v1::ShmMessage& message) {
  if (message.has_renewed()) return absl::OkStatus();
  if (!message.has_pinned()) return absl::DataLossError("shm: not what a server sends");
  const v1::ShmPinned& answer = message.pinned();
  {
    MutexLock lock(&mu_);
    const auto found = pending_.find(answer.pin_id());
    if (found == pending_.end() || found->second.answered) {
      return absl::DataLossError("shm: answer to no question");
    }
    if (!found->second.abandoned) {
      found->second.answered = true;
      found->second.answer = answer;
      changed_.SignalAll();
      return absl::OkStatus();
    }
    pending_.erase(found);
    --num_abandoned_;
  }
  if (answer.code() == 0) Unpin(answer.pin_id());
  return absl::OkStatus();
}

}  // namespace pkv
