#ifndef PKV_TESTS_SUPPORT_SCRIPTED_CONNECTION_H_
#define PKV_TESTS_SUPPORT_SCRIPTED_CONNECTION_H_

// A Connection whose server is a script that runs inside Send(): no network, no threads, so that
// what arrives before a wait has arrived for certain.

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "client/client_core.h"
#include "client/connection.h"
#include "tests/support/data_frames.h"

namespace pkv {

// Thread-compatible.
class ScriptedStream final : public MessageStream {
 public:
  // Called with each message that is sent, and with nullptr at the half-close.
  using Script = std::function<void(ScriptedStream& stream, const std::string* message)>;

  ScriptedStream(Script script, StreamReceiver* receiver)
      : script_(std::move(script)), receiver_(receiver) {}
  ~ScriptedStream() override { End(absl::CancelledError("cancelled")); }

  void Send(grpc::ByteBuffer message) override {
    grpc::Slice slice;
    PKV_CHECK(message.DumpToSingleSlice(&slice).ok());
    const std::string bytes(reinterpret_cast<const char*>(slice.begin()), slice.size());
    script_(*this, &bytes);
    if (!ended_ && !holds_sent_) receiver_->OnSent();
  }
  void HalfClose() override { script_(*this, nullptr); }
  void Cancel() override { cancelled_ = true; }

  // For scripts.
  void Deliver(const google::protobuf::MessageLite& message) {
    if (ended_) return;
    grpc::ByteBuffer buffer = ToBuffer(message);
    const absl::Status status = receiver_->OnMessage(buffer);
    if (!status.ok()) End(status);
  }
  void End(const absl::Status& status) {
    if (std::exchange(ended_, true)) return;
    receiver_->OnEnd(status);
  }
  // From now on nothing that is sent leaves.
  void HoldSent() { holds_sent_ = true; }
  bool cancelled() const { return cancelled_; }

 private:
  Script script_;
  StreamReceiver* receiver_;
  bool ended_ = false;
  bool cancelled_ = false;
  bool holds_sent_ = false;
};

// Streams follow `scripts` in turn; with none left, and for unary calls without an answer, the
// server is away.
class ScriptedConnection final : public Connection {
 public:
  std::deque<ScriptedStream::Script> scripts;
  std::function<absl::Status(const v1::LookupRequest&, v1::LookupResponse&)> lookup;
  std::function<absl::Status(const v1::StatRequest&, v1::StatResponse&)> stat;
  std::function<absl::Status(const v1::DeleteRequest&, v1::DeleteResponse&)> remove;
  std::function<absl::Status(v1::StatsResponse&)> stats;
  std::function<void()> reconnect = [] {};
  // Without it, the server knows no handoff.
  std::function<absl::Status(const v1::HandoffOpenRequest&, v1::HandoffOpenResponse&)> open_handoff;
  std::atomic<int> num_calls = 0;
  StreamMethod last_method = StreamMethod::kGet;  // of the last stream

  absl::Status Lookup(const v1::LookupRequest& request, absl::Duration,
                      v1::LookupResponse& response) override {
    ++num_calls;
    return lookup ? lookup(request, response) : Away();
  }
  absl::Status Stat(const v1::StatRequest& request, absl::Duration,
                    v1::StatResponse& response) override {
    ++num_calls;
    return stat ? stat(request, response) : Away();
  }
  absl::Status Delete(const v1::DeleteRequest& request, absl::Duration,
                      v1::DeleteResponse& response) override {
    ++num_calls;
    return remove ? remove(request, response) : Away();
  }
  absl::Status Stats(absl::Duration, v1::StatsResponse& response) override {
    ++num_calls;
    return stats ? stats(response) : Away();
  }
  void Reconnect() override { reconnect(); }
  absl::Status Drain(absl::Duration) override {
    ++num_calls;
    return Away();
  }
  absl::Status OpenHandoff(const v1::HandoffOpenRequest& request, absl::Duration timeout,
                           v1::HandoffOpenResponse& response) override {
    return open_handoff ? open_handoff(request, response)
                        : Connection::OpenHandoff(request, timeout, response);
  }
  std::unique_ptr<MessageStream> OpenStream(StreamMethod method, absl::Duration,
                                            StreamReceiver* receiver) override {
    ++num_calls;
    last_method = method;
    ScriptedStream::Script script = [](ScriptedStream& stream, const std::string*) {
      stream.End(Away());
    };
    if (!scripts.empty()) {
      script = std::move(scripts.front());
      scripts.pop_front();
    }
    return std::make_unique<ScriptedStream>(std::move(script), receiver);
  }

 private:
  static absl::Status Away() { return absl::UnavailableError("no script: the server is away"); }
};

// Options under which a test that must run out of time or patience does so at once.
inline ClientOptions ImpatientOptions() {
  ClientOptions options;
  options.initial_backoff = absl::Milliseconds(1);
  options.max_backoff = absl::Milliseconds(2);
  options.message_bytes = 4 << 10;
  return options;
}

// What calls need around them. `connection` lives in the core.
struct ScriptedCore {
  std::shared_ptr<ClientCore> core;
  ScriptedConnection* connection;
};

inline ScriptedCore MakeScriptedCore(const ClientOptions& options = ImpatientOptions()) {
  auto connection = std::make_unique<ScriptedConnection>();
  ScriptedCore result{std::make_shared<ClientCore>(), connection.get()};
  result.core->options = options;
  result.core->options.statistics = std::make_shared<CallStatistics>();
  result.core->connection = std::move(connection);
  result.core->clock = Clock::Real();
  result.core->shm =
      std::make_unique<ShmDialer>(result.connection, ShmUse::kGets, result.core->clock);
  result.core->shm_puts =
      std::make_unique<ShmDialer>(result.connection, ShmUse::kPuts, result.core->clock);
  return result;
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_SCRIPTED_CONNECTION_H_
