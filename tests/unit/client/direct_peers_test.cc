#include "client/direct_peers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
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
          return std::make_unique<ScriptedConnection>();
        },
        FakePort(std::make_shared<FakePairCalls>(std::make_shared<FakeLink>(), nullptr), 2),
        Clock::Real(), [](const DirectName&) { return std::vector<std::string>(); });
  }
  static std::string Address(size_t i) { return absl::StrCat("prefill-", i, ":7441"); }

  std::vector<std::string> dialled_;
  std::unique_ptr<DirectPeers> peers_;
};

TEST_F(DirectPeersTest, DialsAPeerOnce) {
  const auto peer = peers_->Find(Address(0));
  ASSERT_THAT(peer, IsOk());
  EXPECT_EQ(*peers_->Find(Address(0)), *peer);
  EXPECT_THAT(dialled_, testing::ElementsAre(Address(0)));
}

TEST_F(DirectPeersTest, DialsNothingThatItIsNotConfiguredWithAndSaysSoOnce) {
  testing::internal::CaptureStderr();
  for (const char* address : {"evil.example:7441", "prefill-0:7442", "unix:/run/pkv.sock",
                              "prefill-0:7441\n2026 forged", ""}) {
    EXPECT_THAT(peers_->Find(address), StatusIs(absl::StatusCode::kFailedPrecondition)) << address;
  }
  EXPECT_THAT(dialled_, testing::IsEmpty());
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_THAT(log, testing::HasSubstr("evil.example:7441"));
  EXPECT_THAT(log, testing::Not(testing::HasSubstr("forged")));
}

TEST_F(DirectPeersTest, ClosesTheLeastRecentlyUsedOfTooMany) {
  for (size_t i = 0; i < DirectPeers::kMaxPeers; ++i) peers_->Find(Address(i)).IgnoreError();
  peers_->Find(Address(0)).IgnoreError();
  EXPECT_THAT(peers_->Find(Address(DirectPeers::kMaxPeers)), IsOk());
  dialled_.clear();
  peers_->Find(Address(0)).IgnoreError();
  EXPECT_THAT(dialled_, testing::IsEmpty());
  peers_->Find(Address(1)).IgnoreError();
  EXPECT_THAT(dialled_, testing::ElementsAre(Address(1)));
}

TEST_F(DirectPeersTest, NoneThatIsReadFromIsClosed) {
  std::vector<std::shared_ptr<DirectPeer>> held;
  for (size_t i = 0; i < DirectPeers::kMaxPeers; ++i) held.push_back(*peers_->Find(Address(i)));
  EXPECT_THAT(peers_->Find(Address(DirectPeers::kMaxPeers)),
              StatusIs(absl::StatusCode::kResourceExhausted));
  held.erase(held.begin() + 3);
  EXPECT_THAT(peers_->Find(Address(DirectPeers::kMaxPeers)), IsOk());
}

}  // namespace
}  // namespace pkv
