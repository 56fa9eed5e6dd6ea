#include "client/watched_connection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/support/scripted_connection.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

// What the server says when it is asked, and when: the test answers. Thread-safe.
class Answers {
 public:
  absl::Status Stats(v1::StatsResponse& response) {
    MutexLock lock(&mu_);
    ++num_asked_;
    changed_.SignalAll();
    while (held_) changed_.Wait(&mu_);
    response.set_draining(draining_);
    return status_;
  }
  void Set(const absl::Status& status, bool draining = false) {
    MutexLock lock(&mu_);
    status_ = status;
    draining_ = draining;
  }
  // Until the answer to a question asked from now on is known.
  void WaitForAnswer() {
    MutexLock lock(&mu_);
    // The one after the next begins when the next is answered.
    const int wanted = num_asked_ + 2;
    while (num_asked_ < wanted) changed_.Wait(&mu_);
  }
  // Answers no question until it is released.
  void Hold(bool held) {
    MutexLock lock(&mu_);
    held_ = held;
    changed_.SignalAll();
  }
  void Reconnected() {
    MutexLock lock(&mu_);
    ++num_reconnects_;
  }
  int num_reconnects() {
    MutexLock lock(&mu_);
    return num_reconnects_;
  }

 private:
  Mutex mu_;
  CondVar changed_;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool held_ ABSL_GUARDED_BY(mu_) = false;
  int num_asked_ ABSL_GUARDED_BY(mu_) = 0;
  int num_reconnects_ ABSL_GUARDED_BY(mu_) = 0;
};

class WatchedConnectionTest : public testing::Test {
 protected:
  ~WatchedConnectionTest() override { answers_.Hold(false); }

  // A connection to a server that does not answer the question whether it is there.
  void WatchCallsAlone() {
    answers_.Hold(true);
    Watch(absl::Hours(1));
  }
  void Watch(absl::Duration interval) {
    auto inner = std::make_unique<ScriptedConnection>();
    inner_ = inner.get();
    inner_->stats = [this](v1::StatsResponse& response) { return answers_.Stats(response); };
    inner_->reconnect = [this] { answers_.Reconnected(); };
    inner_->lookup = [this](const v1::LookupRequest&, v1::LookupResponse&) { return lookup_; };
    watched_ = std::make_unique<WatchedConnection>(
        std::move(inner), WatchedConnection::Options{.address = "a:1", .interval = interval});
  }
  absl::Status Lookup(const absl::Status& answer) {
    lookup_ = answer;
    v1::LookupResponse response;
    return watched_->Lookup({}, absl::Seconds(1), response);
  }
  // A stream that ends with `status`.
  void RunStream(const absl::Status& status, StreamMethod method = StreamMethod::kPut) {
    inner_->scripts.push_back(
        [status](ScriptedStream& stream, const std::string*) { stream.End(status); });
    struct Receiver final : StreamReceiver {
      absl::Status OnMessage(grpc::ByteBuffer&) override { return absl::OkStatus(); }
      void OnSent() override {}
      void OnEnd(const absl::Status& status) override { ended = status; }
      absl::Status ended;
    } receiver;
    watched_->OpenStream(method, absl::Seconds(1), &receiver)->HalfClose();
    EXPECT_EQ(receiver.ended, status);
    EXPECT_EQ(inner_->last_method, method);
  }

  Answers answers_;
  absl::Status lookup_;
  ScriptedConnection* inner_ = nullptr;
  std::unique_ptr<WatchedConnection> watched_;
};

TEST_F(WatchedConnectionTest, FollowsWhatTheServerAnswers) {
  Watch(absl::Milliseconds(1));
  answers_.WaitForAnswer();
  EXPECT_EQ(watched_->state(), ServerState::kReady);
  answers_.Set(absl::OkStatus(), /*draining=*/true);
  answers_.WaitForAnswer();
  EXPECT_EQ(watched_->state(), ServerState::kDraining);
  EXPECT_EQ(answers_.num_reconnects(), 0);
  answers_.Set(absl::DeadlineExceededError("asleep"));
  answers_.WaitForAnswer();
  EXPECT_EQ(watched_->state(), ServerState::kAway);
  EXPECT_GT(answers_.num_reconnects(), 0) << "an address may lead elsewhere by now";
  answers_.Set(absl::OkStatus());
  answers_.WaitForAnswer();
  EXPECT_EQ(watched_->state(), ServerState::kReady);
}

TEST_F(WatchedConnectionTest, ACallThatFindsNobodyMakesItAway) {
  WatchCallsAlone();
  EXPECT_THAT(Lookup(absl::OkStatus()), IsOk());
  EXPECT_THAT(Lookup(absl::NotFoundError("")), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(watched_->state(), ServerState::kReady);
  EXPECT_THAT(Lookup(absl::UnavailableError("refused")), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(watched_->state(), ServerState::kAway);
  EXPECT_THAT(Lookup(absl::OkStatus()), IsOk());
  EXPECT_EQ(watched_->state(), ServerState::kAway) << "only its own question brings it back";
}

TEST_F(WatchedConnectionTest, OneCallOutOfTimeIsForgivenTwoInARowAreNot) {
  WatchCallsAlone();
  const absl::Status late = absl::DeadlineExceededError("");
  Lookup(late).IgnoreError();
  Lookup(absl::OkStatus()).IgnoreError();
  Lookup(late).IgnoreError();
  EXPECT_EQ(watched_->state(), ServerState::kReady);
  Lookup(late).IgnoreError();
  EXPECT_EQ(watched_->state(), ServerState::kAway);
}

TEST_F(WatchedConnectionTest, AStreamThatBreaksMakesItAwayOneOutOfTimeDoesNot) {
  WatchCallsAlone();
  for (const absl::Status& status :
       {absl::OkStatus(), absl::CancelledError(""), absl::DeadlineExceededError(""),
        absl::DeadlineExceededError(""), absl::ResourceExhaustedError("")}) {
    RunStream(status);
    EXPECT_EQ(watched_->state(), ServerState::kReady) << status;
  }
  RunStream(absl::UnavailableError("draining"));
  EXPECT_EQ(watched_->state(), ServerState::kAway);
}

TEST_F(WatchedConnectionTest, WatchesTheCallOfAPairAsItDoesGetsAndPuts) {
  WatchCallsAlone();
  RunStream(absl::AbortedError("the pair broke, not the server"), StreamMethod::kPair);
  EXPECT_EQ(watched_->state(), ServerState::kReady);
  RunStream(absl::UnavailableError("killed"), StreamMethod::kPair);
  EXPECT_EQ(watched_->state(), ServerState::kAway);
}

TEST_F(WatchedConnectionTest, PassesEveryCallOn) {
  WatchCallsAlone();
  inner_->stat = [](const v1::StatRequest&, v1::StatResponse&) {
    return absl::NotFoundError("stat");
  };
  inner_->remove = [](const v1::DeleteRequest&, v1::DeleteResponse&) {
    return absl::NotFoundError("delete");
  };
  inner_->open_handoff = [](const v1::HandoffOpenRequest&, v1::HandoffOpenResponse&) {
    return absl::NotFoundError("handoff");
  };
  v1::StatResponse stat;
  v1::DeleteResponse removed;
  v1::HandoffOpenResponse handoff;
  EXPECT_EQ(watched_->Stat({}, absl::Seconds(1), stat), absl::NotFoundError("stat"));
  EXPECT_EQ(watched_->Delete({}, absl::Seconds(1), removed), absl::NotFoundError("delete"));
  EXPECT_EQ(watched_->OpenHandoff({}, absl::Seconds(1), handoff), absl::NotFoundError("handoff"));
  EXPECT_EQ(watched_->state(), ServerState::kReady);
  EXPECT_THAT(watched_->Drain(absl::Seconds(1)), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(watched_->state(), ServerState::kAway);
  answers_.Hold(false);
  v1::StatsResponse stats;
  EXPECT_THAT(watched_->Stats(absl::Seconds(1), stats), IsOk());
}

}  // namespace
}  // namespace pkv
