#include "client/direct_peers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/base/sync.h"
#include "tests/support/fake_clock.h"
#include "tests/support/scripted_pair_holder.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

class DirectPeersTest : public testing::Test {
 protected:
  DirectPeersTest() {
    std::string list;
    for (size_t i = 0; i <= DirectPeers::kMaxPeers; ++i) {
      absl::StrAppend(&list, i == 0 ? "" : ",", Address(i));
    }
    peers_ = std::make_unique<DirectPeers>(
        *ParseDirectNames(list),
        [this](const std::string& address) {
          dialled_.push_back(address);
          auto connection = std::make_unique<ScriptedConnection>();
          holder_.Serve(*connection);
          return connection;
        },
        FakePort(calls_, 2), &clock_,
        [this](const DirectName&) {
          MutexLock lock(&mu_);
          return hosts_;
        });
  }
  static std::string Address(size_t i) { return absl::StrCat("prefill-", i, ":7441"); }

  void Resolve(std::vector<std::string> hosts) {
    MutexLock lock(&mu_);
    hosts_ = std::move(hosts);
  }
  void Fill() {
    for (size_t i = 0; i < DirectPeers::kMaxPeers; ++i) {
      EXPECT_THAT(peers_->Find(Address(i)), IsOk()) << i;
    }
  }
  // Once there is room: what is being closed takes its time.
  bool FindsSoon(const std::string& address) {
    for (;;) {
      const auto found = peers_->Find(address);
      if (found.ok()) return true;
      if (!absl::IsResourceExhausted(found.status())) return false;
      std::this_thread::yield();
    }
  }

  FakeClock clock_;
  Mutex mu_;
  std::vector<std::string> hosts_ ABSL_GUARDED_BY(mu_);
  ScriptedPairHolder holder_;
  std::shared_ptr<FakePairCalls> calls_ = std::make_shared<FakePairCalls>(holder_.link, nullptr);
  std::vector<std::string> dialled_;
  std::unique_ptr<DirectPeers> peers_;
};

TEST_F(DirectPeersTest, DialsAPeerOnce) {
  const auto peer = peers_->Find(Address(0));
  ASSERT_THAT(peer, IsOk());
  EXPECT_EQ(*peers_->Find(Address(0)), *peer);
  EXPECT_THAT(dialled_, testing::ElementsAre(Address(0)));
}

TEST_F(DirectPeersTest, DialsNothingThatItIsNotConfiguredWithAndSaysSoAtIntervals) {
  while (absl::IsUnavailable(peers_->Find("evil.example:7441").status())) {
    std::this_thread::yield();  // names are being looked up
  }
  clock_.Advance(DirectPeers::kLogInterval);
  while (absl::IsUnavailable(peers_->Find("10.0.0.1:1").status())) std::this_thread::yield();
  clock_.Advance(absl::Seconds(1));
  testing::internal::CaptureStderr();
  for (const char* address : {"evil.example:7441", "prefill-0:7442", "unix:/run/pkv.sock",
                              "prefill-0:7441\n2026 forged", ""}) {
    EXPECT_THAT(peers_->Find(address), StatusIs(absl::StatusCode::kFailedPrecondition)) << address;
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "") << "said a moment ago";
  clock_.Advance(DirectPeers::kLogInterval);
  testing::internal::CaptureStderr();
  while (absl::IsUnavailable(peers_->Find("evil.example:7441").status())) {
    std::this_thread::yield();
  }
  EXPECT_THAT(testing::internal::GetCapturedStderr(), testing::HasSubstr("evil.example:7441"));
  EXPECT_THAT(dialled_, testing::IsEmpty());
}

TEST_F(DirectPeersTest, AnAddressThatMayTurnOutToBeOneIsNotRefused) {
  MutexLock lock(&mu_);  // so that looking up does not end
  clock_.Advance(DirectAddresses::kAnswerStands);
  EXPECT_THAT(peers_->Find("10.0.0.7:7441"), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(DirectPeersTest, ClosesTheLeastRecentlyUsedThatIsIdleForOneTooMany) {
  Fill();
  clock_.Advance(DirectPeers::kIdle);
  peers_->Find(Address(0)).IgnoreError();
  EXPECT_TRUE(FindsSoon(Address(DirectPeers::kMaxPeers)));
  dialled_.clear();
  EXPECT_THAT(peers_->Find(Address(0)), IsOk());
  EXPECT_THAT(dialled_, testing::IsEmpty()) << "used a moment ago";
}

// Otherwise every ticket would close the one that the next one needs.
TEST_F(DirectPeersTest, NoneThatIsInUseIsClosedForOneTooMany) {
  Fill();
  dialled_.clear();
  testing::internal::CaptureStderr();
  for (int round = 0; round < 3; ++round) {
    for (size_t i = 0; i <= DirectPeers::kMaxPeers; ++i) {
      EXPECT_EQ(peers_->Find(Address(i)).ok(), i < DirectPeers::kMaxPeers) << i;
    }
    clock_.Advance(absl::Seconds(10));
  }
  EXPECT_THAT(dialled_, testing::IsEmpty());
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::ranges::count(log, '\n'), 1) << log;
}

TEST_F(DirectPeersTest, NoneThatIsReadFromIsClosed) {
  std::vector<std::shared_ptr<DirectPeer>> held;
  for (size_t i = 0; i < DirectPeers::kMaxPeers; ++i) held.push_back(*peers_->Find(Address(i)));
  clock_.Advance(DirectPeers::kIdle);
  EXPECT_THAT(peers_->Find(Address(DirectPeers::kMaxPeers)),
              StatusIs(absl::StatusCode::kResourceExhausted));
  held.erase(held.begin() + 3);
  EXPECT_TRUE(FindsSoon(Address(DirectPeers::kMaxPeers)));
}

TEST_F(DirectPeersTest, GivesBackTheMemoryOfAPairThatBrokeAndKeepsThePeer) {
  auto peer = *peers_->Find(Address(0));
  ASSERT_THAT(peer->dialer.Link(absl::InfiniteFuture()), IsOk());
  EXPECT_GT(calls_->num_alive(), 0);
  holder_.stream->End(absl::UnavailableError("killed"));
  clock_.Advance(DirectPeers::kDropInterval);
  peers_->DropDead();
  while (calls_->num_alive() > 0) std::this_thread::yield();
  // As if a get had asked for it: it is not dialled at once.
  EXPECT_THAT(peer->dialer.Link(absl::InfiniteFuture()), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(*peers_->Find(Address(0)), peer);
}

TEST_F(DirectPeersTest, ClosesAPeerThatMayNotBeAskedAnyMore) {
  Resolve({"10.0.0.7"});
  clock_.Advance(DirectAddresses::kResolvedLasts);
  while (!peers_->Find("10.0.0.7:7441").ok()) std::this_thread::yield();
  (*peers_->Find("10.0.0.7:7441"))->dialer.Link(absl::InfiniteFuture()).IgnoreError();
  EXPECT_GT(calls_->num_alive(), 0);
  Resolve({"10.0.0.8"});
  clock_.Advance(DirectAddresses::kResolvedLasts);
  while (calls_->num_alive() > 0) {
    peers_->DropDead();
    clock_.Advance(DirectPeers::kDropInterval);
    std::this_thread::yield();
  }
}

}  // namespace
}  // namespace pkv
