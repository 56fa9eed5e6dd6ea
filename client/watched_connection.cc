#include "client/watched_connection.h"

#include <utility>

#include "proto/base/log.h"

namespace pkv {
namespace {

const char* Name(ServerState state) {
  switch (state) {
    case ServerState::kReady:
      return "ready";
    case ServerState::kDraining:
      return "draining";
    case ServerState::kAway:
      return "away";
  }
  return "?";
}

}  // namespace

// Passes everything on and tells the connection how the stream ended.
class WatchedConnection::Stream final : public MessageStream, private StreamReceiver {
 public:
  Stream(WatchedConnection* connection, StreamReceiver* receiver)
      : connection_(*connection), receiver_(*receiver) {}

  void Open(Connection& inner, StreamMethod method, absl::Duration timeout) {
    inner_ = inner.OpenStream(method, timeout, this);
  }

  void Send(grpc::ByteBuffer message) override { inner_->Send(std::move(message)); }
  void HalfClose() override { inner_->HalfClose(); }
  void Cancel() override { inner_->Cancel(); }

 private:
  absl::Status OnMessage(grpc::ByteBuffer& message) override {
    return receiver_.OnMessage(message);
  }
  void OnSent() override { receiver_.OnSent(); }
  void OnEnd(const absl::Status& status) override {
    // First: whoever learns of the end may ask for another server at once.
    connection_.NoteStream(status);
    receiver_.OnEnd(status);
  }

  WatchedConnection& connection_;
  StreamReceiver& receiver_;
  std::unique_ptr<MessageStream> inner_;  // its end ends the calls to this
};

WatchedConnection::WatchedConnection(std::unique_ptr<Connection> inner, const Options& options)
    : inner_(std::move(inner)), options_(options), thread_([this] { Run(); }) {}

WatchedConnection::~WatchedConnection() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    stop_.SignalAll();
  }
  thread_.join();
}

ServerState WatchedConnection::state() const {
  MutexLock lock(&mu_);
  return state_;
}

void WatchedConnection::SetState(ServerState state, const absl::Status& reason) {
  {
    MutexLock lock(&mu_);
    num_timeouts_ = 0;
    if (std::exchange(state_, state) == state) return;
  }
  Log(state == ServerState::kReady ? LogLevel::kInfo : LogLevel::kWarning, "cache server",
      {{"address", options_.address}, {"state", Name(state)}, {"reason", reason.ToString()}});
}

absl::Status WatchedConnection::Note(const absl::Status& status) {
  bool is_away = absl::IsUnavailable(status);
  {
    MutexLock lock(&mu_);
    if (!absl::IsDeadlineExceeded(status)) {
      num_timeouts_ = 0;
    } else if (++num_timeouts_ >= kMaxTimeouts) {
      is_away = true;
    }
  }
  if (is_away) SetState(ServerState::kAway, status);
  return status;
}

// The deadline of a stream is as long as its caller needs: that it passed says nothing.
void WatchedConnection::NoteStream(const absl::Status& status) {
  if (absl::IsUnavailable(status)) SetState(ServerState::kAway, status);
}

void WatchedConnection::Run() {
  for (;;) {
    Ask();
    MutexLock lock(&mu_);
    // Woken without a reason it asks earlier.
    if (!stopping_) stop_.WaitWithTimeout(&mu_, options_.interval);
    if (stopping_) return;
  }
}

void WatchedConnection::Ask() {
  v1::StatsResponse response;
  const absl::Status status = inner_->Stats(options_.timeout, response);
  if (!status.ok()) {
    SetState(ServerState::kAway, status);
    inner_->Reconnect();
  } else {
    SetState(response.draining() ? ServerState::kDraining : ServerState::kReady, status);
  }
}

absl::Status WatchedConnection::Lookup(const v1::LookupRequest& request, absl::Duration timeout,
                                       v1::LookupResponse& response) {
  return Note(inner_->Lookup(request, timeout, response));
}

absl::Status WatchedConnection::Stat(const v1::StatRequest& request, absl::Duration timeout,
                                     v1::StatResponse& response) {
  return Note(inner_->Stat(request, timeout, response));
}

absl::Status WatchedConnection::Delete(const v1::DeleteRequest& request, absl::Duration timeout,
                                       v1::DeleteResponse& response) {
  return Note(inner_->Delete(request, timeout, response));
}

absl::Status WatchedConnection::Stats(absl::Duration timeout, v1::StatsResponse& response) {
  return Note(inner_->Stats(timeout, response));
}

absl::Status WatchedConnection::Drain(absl::Duration timeout) {
  return Note(inner_->Drain(timeout));
}

absl::Status WatchedConnection::OpenHandoff(const v1::HandoffOpenRequest& request,
                                            absl::Duration timeout,
                                            v1::HandoffOpenResponse& response) {
  return Note(inner_->OpenHandoff(request, timeout, response));
}

std::unique_ptr<MessageStream> WatchedConnection::OpenStream(StreamMethod method,
                                                             absl::Duration timeout,
                                                             StreamReceiver* receiver) {
  auto stream = std::make_unique<Stream>(this, receiver);
  stream->Open(*inner_, method, timeout);
  return stream;
}

}  // namespace pkv
