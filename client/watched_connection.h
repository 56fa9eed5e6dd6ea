#ifndef PKV_CLIENT_WATCHED_CONNECTION_H_
#define PKV_CLIENT_WATCHED_CONNECTION_H_

#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/connection.h"
#include "pkv/client/cache_cluster.h"
#include "proto/base/sync.h"

namespace pkv {

// A connection that knows whether its server is there: from how calls end, and from asking it for
// its Stats every `interval` in a thread of its own. Calls only ever make a server away; answers to
// that question say that it is back. Asking one that is away dials it at once, however long gRPC
// would have waited.
//
// Thread-safe.
class WatchedConnection final : public Connection {
 public:
  struct Options {
    std::string address;  // for the log
    absl::Duration interval = absl::Seconds(1);
    absl::Duration timeout = absl::Milliseconds(500);  // of one question
  };
  // Calls in a row that may end with DeadlineExceeded before the server is taken for away: a busy
  // one answers the next in time.
  static constexpr int kMaxTimeouts = 2;

  WatchedConnection(std::unique_ptr<Connection> inner, const Options& options);
  // Waits for the question under way.
  ~WatchedConnection() override;

  // Ready until something else is known.
  ServerState state() const ABSL_LOCKS_EXCLUDED(mu_);

  absl::Status Lookup(const v1::LookupRequest& request, absl::Duration timeout,
                      v1::LookupResponse& response) override;
  absl::Status Stat(const v1::StatRequest& request, absl::Duration timeout,
                    v1::StatResponse& response) override;
  absl::Status Delete(const v1::DeleteRequest& request, absl::Duration timeout,
                      v1::DeleteResponse& response) override;
  absl::Status Stats(absl::Duration timeout, v1::StatsResponse& response) override;
  absl::Status Drain(absl::Duration timeout) override;
  absl::Status OpenHandoff(const v1::HandoffOpenRequest& request, absl::Duration timeout,
                           v1::HandoffOpenResponse& response) override;
  std::unique_ptr<MessageStream> OpenStream(StreamMethod method, absl::Duration timeout,
                                            StreamReceiver* receiver) override;
  void Reconnect() override { inner_->Reconnect(); }

 private:
  class Stream;

  // Notes how a call ended and returns it.
  absl::Status Note(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  void NoteStream(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  void SetState(ServerState state, const absl::Status& reason) ABSL_LOCKS_EXCLUDED(mu_);
  void Run() ABSL_LOCKS_EXCLUDED(mu_);
  void Ask() ABSL_LOCKS_EXCLUDED(mu_);

  // Constant after construction.
  const std::unique_ptr<Connection> inner_;
  const Options options_;

  mutable Mutex mu_;
  CondVar stop_;
  ServerState state_ ABSL_GUARDED_BY(mu_) = ServerState::kReady;
  int num_timeouts_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread thread_;  // uses what stands above
};

}  // namespace pkv

#endif  // PKV_CLIENT_WATCHED_CONNECTION_H_
