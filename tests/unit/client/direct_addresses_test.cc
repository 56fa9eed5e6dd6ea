#include "client/direct_addresses.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <string>
#include <thread>
#include <vector>

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
        "dns:///prefill:7441", "fd00::7:7441", "[]:7441", "a:1,", "a:1,,b:1"}) {
    EXPECT_THAT(ParseDirectNames(list), StatusIs(absl::StatusCode::kInvalidArgument)) << list;
  }
}

// Names and what they resolve to.
class DirectAddressesTest : public testing::Test {
 protected:
  std::vector<std::string> Resolve(const DirectName& name) {
    MutexLock lock(&mu_);
    return hosts_[name.host];
  }
  void Set(const std::string& host, std::vector<std::string> addresses) {
    MutexLock lock(&mu_);
    hosts_[host] = std::move(addresses);
  }
  DirectAddresses Make(const std::string& list) {
    return DirectAddresses(*ParseDirectNames(list), &clock_, [this](const DirectName& name) {
      auto found = Resolve(name);
      ++num_resolved_;
      return found;
    });
  }
  // Whether an address is allowed once the names are resolved.
  bool AllowsSoon(DirectAddresses& addresses, const std::string& address) {
    const absl::Time end = Clock::Real()->MonotonicNow() + absl::Seconds(20);
    while (!addresses.Allows(address)) {
      if (Clock::Real()->MonotonicNow() > end) return false;
      std::this_thread::yield();
    }
    return true;
  }

  FakeClock clock_;
  std::atomic<int> num_resolved_ = 0;
  Mutex mu_;
  std::map<std::string, std::vector<std::string>> hosts_ ABSL_GUARDED_BY(mu_);
};

TEST_F(DirectAddressesTest, AllowsNamesAndWhatTheyResolveToWithTheirPort) {
  Set("prefill", {"10.0.0.7", "10.0.0.8", "fd00::7"});
  DirectAddresses addresses = Make("prefill:7441,[fd00::9]:7442");
  for (const char* address :
       {"prefill:7441", "[fd00::9]:7442", "10.0.0.7:7441", "10.0.0.8:7441", "[fd00::7]:7441"}) {
    EXPECT_TRUE(AllowsSoon(addresses, address)) << address;
  }
}

// What a client may write into a ticket.
TEST_F(DirectAddressesTest, AllowsNothingElse) {
  Set("prefill", {"10.0.0.7"});
  DirectAddresses addresses = Make("prefill:7441");
  ASSERT_TRUE(AllowsSoon(addresses, "10.0.0.7:7441"));
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
    EXPECT_FALSE(addresses.Allows(address)) << address;
  }
}

TEST_F(DirectAddressesTest, ResolvesAgainOnceTheAnswerIsOldAndForgetsWhatIsGone) {
  Set("prefill", {"10.0.0.7"});
  DirectAddresses addresses = Make("prefill:7441");
  ASSERT_TRUE(AllowsSoon(addresses, "10.0.0.7:7441"));
  Set("prefill", {"10.0.0.8"});
  clock_.Advance(DirectAddresses::kResolvedLasts - absl::Milliseconds(1));
  EXPECT_TRUE(addresses.Allows("10.0.0.7:7441"));
  EXPECT_EQ(num_resolved_, 1);
  clock_.Advance(absl::Milliseconds(1));
  EXPECT_FALSE(addresses.Allows("10.0.0.8:7441")) << "asked for now";
  EXPECT_TRUE(AllowsSoon(addresses, "10.0.0.8:7441"));
  EXPECT_FALSE(addresses.Allows("10.0.0.7:7441"));
}

TEST_F(DirectAddressesTest, ANameThatResolvesToNothingIsAllowedByItselfAlone) {
  DirectAddresses addresses = Make("prefill:7441");
  EXPECT_TRUE(AllowsSoon(addresses, "prefill:7441"));
  EXPECT_FALSE(addresses.Allows("0.0.0.0:7441"));
}

TEST(ResolveByDnsTest, SpellsNumbersAndKnowsLocalhost) {
  EXPECT_THAT(DirectAddresses::ResolveByDns({"127.0.0.1", "1"}), testing::ElementsAre("127.0.0.1"));
  EXPECT_THAT(DirectAddresses::ResolveByDns({"localhost", "1"}),
              testing::Each(testing::AnyOf("127.0.0.1", "::1")));
  EXPECT_THAT(DirectAddresses::ResolveByDns({"no such name", "1"}), testing::IsEmpty());
}

}  // namespace
}  // namespace pkv
