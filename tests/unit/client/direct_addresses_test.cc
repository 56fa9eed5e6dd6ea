#include "client/direct_addresses.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/base/sync.h"
#include "tests/support/fake_clock.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

TEST(ParseDirectNamesTest, TakesNamesAndNumbersWithPorts) {
  const auto names = ParseDirectNames("prefill:7441, 10.0.0.7:1,[fd00::7]:65535");
  ASSERT_THAT(names, IsOk());
  ASSERT_EQ(names->size(), 3u);
  EXPECT_EQ((*names)[0].host, "prefill");
  EXPECT_EQ((*names)[1].port, "1");
  EXPECT_EQ((*names)[2].host, "fd00::7");
  EXPECT_THAT(ParseDirectNames(""), IsOkAndHolds(testing::IsEmpty()));
}

TEST(ParseDirectNamesTest, RefusesWhatIsNone) {
  for (const char* list :
       {"prefill", ":7441", "prefill:", "prefill:0", "prefill:65536", "prefill:x", "unix:/run/x:1",
        "dns:///prefill:7441", "fd00::7:7441", "[]:7441", "a:1,", "a:1,,b:1", "a:+7441", "a: 7441",
        "a:07441", "a:7441.", "[10.0.0.7]:7441", "[prefill]:7441", "a b:7441"}) {
    EXPECT_THAT(ParseDirectNames(list), StatusIs(absl::StatusCode::kInvalidArgument)) << list;
  }
}

TEST(ParseDirectNamesTest, SpellsNumbersAsTheSystemDoes) {
  EXPECT_EQ(Spell((*ParseDirectNames("[FD00:0:0::7]:1"))[0]), "[fd00::7]:1");
  EXPECT_EQ(Spell((*ParseDirectNames("10.0.0.7:1"))[0]), "10.0.0.7:1");
}

using Verdict = DirectAddresses::Verdict;

// Names and what they resolve to. Lookups are counted once they are known.
class DirectAddressesTest : public testing::Test {
 protected:
  absl::StatusOr<std::vector<std::string>> Resolve(const DirectName& name) {
    MutexLock lock(&mu_);
    ++num_resolved_;
    if (!failure_.ok() && name.host != "other") return failure_;
    return hosts_[name.host];
  }
  void Set(const std::string& host, std::vector<std::string> addresses) {
    MutexLock lock(&mu_);
    hosts_[host] = std::move(addresses);
  }
  void Fail(absl::Status failure) {
    MutexLock lock(&mu_);
    failure_ = std::move(failure);
  }
  DirectAddresses Make(const std::string& list) {
    return DirectAddresses(*ParseDirectNames(list), &clock_,
                           [this](const DirectName& name) { return Resolve(name); });
  }
  // Until it is this.
  static void Await(DirectAddresses& addresses, const std::string& address, Verdict verdict) {
    const absl::Time end = Clock::Real()->MonotonicNow() + absl::Seconds(20);
    while (addresses.Judge(address) != verdict) {
      ASSERT_LT(Clock::Real()->MonotonicNow(), end) << address;
      std::this_thread::yield();
    }
  }
  // Has the names looked up again, and waits until that is known: "marker" is another one's.
  void LookUpAgain(DirectAddresses& addresses) {
    const std::string marker = absl::StrCat("10.9.9.", ++num_markers_);
    Set("other", {marker});
    clock_.Advance(DirectAddresses::kResolvedLasts);
    Await(addresses, absl::StrCat(marker, ":7441"), Verdict::kAllowed);
  }

  FakeClock clock_;
  std::atomic<int> num_resolved_ = 0;
  int num_markers_ = 0;
  Mutex mu_;
  std::map<std::string, std::vector<std::string>> hosts_ ABSL_GUARDED_BY(mu_);
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
};

TEST_F(DirectAddressesTest, AllowsNamesAndWhatTheyResolveToWithTheirPort) {
  Set("prefill", {"10.0.0.7", "10.0.0.8", "fd00::7"});
  DirectAddresses addresses = Make("prefill:7441,[fd00::9]:7442");
  for (const char* address :
       {"prefill:7441", "[fd00::9]:7442", "10.0.0.7:7441", "10.0.0.8:7441", "[fd00::7]:7441"}) {
    Await(addresses, address, Verdict::kAllowed);
  }
}

// What a client may write into a ticket.
TEST_F(DirectAddressesTest, AllowsNothingElse) {
  Set("prefill", {"10.0.0.7"});
  DirectAddresses addresses = Make("prefill:7441");
  Await(addresses, "10.0.0.7:7441", Verdict::kAllowed);
  for (const char* address : {"",
                              "10.0.0.7",
                              "10.0.0.7:7442",
                              "10.0.0.70:7441",
                              "010.0.0.7:7441",
                              "0xa000007:7441",
                              "167772167:7441",
                              "10.0.0.7:07441",
                              " 10.0.0.7:7441",
                              "10.0.0.7:7441 ",
                              "prefill:7442",
                              "prefill.evil.example:7441",
                              "PREFILL:7441",
                              "prefill:7441,evil:1",
                              "dns:///10.0.0.7:7441",
                              "ipv4:10.0.0.7:7441",
                              "unix:/run/pkv.sock",
                              "169.254.169.254:80",
                              "localhost:7441",
                              "[::ffff:10.0.0.7]:7441"}) {
    EXPECT_EQ(addresses.Judge(address), Verdict::kRefused) << address;
  }
}

TEST_F(DirectAddressesTest, ResolvesAgainOnceTheAnswerIsOldAndForgetsWhatIsGone) {
  Set("prefill", {"10.0.0.7"});
  DirectAddresses addresses = Make("prefill:7441");
  Await(addresses, "10.0.0.7:7441", Verdict::kAllowed);
  Set("prefill", {"10.0.0.8"});
  clock_.Advance(DirectAddresses::kResolvedLasts - absl::Milliseconds(1));
  EXPECT_EQ(addresses.Judge("10.0.0.7:7441"), Verdict::kAllowed);
  EXPECT_EQ(num_resolved_, 1);
  clock_.Advance(absl::Milliseconds(1));
  Await(addresses, "10.0.0.8:7441", Verdict::kAllowed);
  EXPECT_EQ(addresses.Judge("10.0.0.7:7441"), Verdict::kRefused);
}

TEST_F(DirectAddressesTest, ANameThatResolvesToNothingIsAllowedByItselfAlone) {
  DirectAddresses addresses = Make("prefill:7441");
  EXPECT_EQ(addresses.Judge("prefill:7441"), Verdict::kAllowed);
  Await(addresses, "0.0.0.0:7441", Verdict::kRefused);
}

TEST_F(DirectAddressesTest, KeepsForAWhileWhatCannotBeLookedUpAgain) {
  Set("prefill", {"10.0.0.7"});
  DirectAddresses addresses = Make("prefill:7441,other:7441");
  Await(addresses, "10.0.0.7:7441", Verdict::kAllowed);
  Fail(absl::UnavailableError("no name server"));
  for (absl::Duration passed; passed < DirectAddresses::kKeptLonger;) {
    LookUpAgain(addresses);
    passed += DirectAddresses::kResolvedLasts;
    EXPECT_EQ(addresses.Judge("10.0.0.7:7441"), Verdict::kAllowed) << passed;
    EXPECT_EQ(addresses.Judge("10.0.0.8:7441"), Verdict::kNotKnownYet) << "it may be one";
  }
  LookUpAgain(addresses);
  EXPECT_EQ(addresses.Judge("10.0.0.7:7441"), Verdict::kNotKnownYet);
  Fail(absl::OkStatus());
  LookUpAgain(addresses);
  EXPECT_EQ(addresses.Judge("10.0.0.7:7441"), Verdict::kAllowed);
  EXPECT_EQ(addresses.Judge("10.0.0.8:7441"), Verdict::kRefused);
}

TEST_F(DirectAddressesTest, AnAnswerThatNobodyAskedForLongIsNone) {
  Set("prefill", {"10.0.0.7"});
  DirectAddresses addresses = Make("prefill:7441");
  Await(addresses, "10.0.0.7:7441", Verdict::kAllowed);
  MutexLock lock(&mu_);  // so that looking up again does not end
  clock_.Advance(DirectAddresses::kAnswerStands);
  EXPECT_EQ(addresses.Judge("10.0.0.7:7441"), Verdict::kNotKnownYet);
  EXPECT_EQ(addresses.Judge("10.0.0.8:7441"), Verdict::kNotKnownYet);
}

// A name server that does not answer holds up the end of a process neither once nor once a name.
TEST_F(DirectAddressesTest, EndsWhileANameIsBeingLookedUp) {
  struct Server {
    Mutex mu;
    CondVar changed;
    bool answers ABSL_GUARDED_BY(mu) = false;
    int num_asked ABSL_GUARDED_BY(mu) = 0, num_answered ABSL_GUARDED_BY(mu) = 0;
  };
  // With the thread that is left behind.
  const auto server = std::make_shared<Server>();
  {
    DirectAddresses addresses(*ParseDirectNames("a:1,b:1"), &clock_, [server](const DirectName&) {
      MutexLock lock(&server->mu);
      ++server->num_asked;
      server->changed.SignalAll();
      while (!server->answers) server->changed.Wait(&server->mu);
      ++server->num_answered;
      server->changed.SignalAll();
      return std::vector<std::string>();
    });
    MutexLock lock(&server->mu);
    while (server->num_asked == 0) server->changed.Wait(&server->mu);
  }
  MutexLock lock(&server->mu);
  EXPECT_EQ(server->num_answered, 0) << "it has ended before";
  server->answers = true;
  server->changed.SignalAll();
  while (server->num_answered == 0) server->changed.Wait(&server->mu);
  EXPECT_EQ(server->num_asked, 1) << "and asks for no other name";
}

TEST(ResolveByDnsTest, SpellsNumbersAndKnowsLocalhost) {
  EXPECT_THAT(DirectAddresses::ResolveByDns({"127.0.0.1", "1"}),
              IsOkAndHolds(testing::ElementsAre("127.0.0.1")));
  EXPECT_THAT(DirectAddresses::ResolveByDns({"localhost", "1"}),
              IsOkAndHolds(testing::AllOf(testing::Not(testing::IsEmpty()),
                                          testing::Each(testing::AnyOf("127.0.0.1", "::1")))));
  // Where there is a name server it says that there is none such.
  const auto none = DirectAddresses::ResolveByDns({"no such name", "1"});
  EXPECT_TRUE(none.ok() ? none->empty() : absl::IsUnavailable(none.status())) << none.status();
}

}  // namespace
}  // namespace pkv
