#include "pkv/client/cache_cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cache_client_impl.h"
#include "client/placement.h"
#include "pkv/client/cache_client.h"
#include "proto/base/status_macros.h"
#include "tests/support/scripted_connection.h"
#include "tests/support/scripted_pair_holder.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

TEST(CacheClusterCreateTest, RefusesAListThatMakesNoSense) {
  ClientOptions options;
  for (const char* list : {"", ",", "a:1,", "a:1,,b:1"}) {
    options.address = list;
    EXPECT_THAT(CacheCluster::Create(options),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("address")))
        << list;
  }
  options.address = "a:1,b:1, a:1";
  EXPECT_THAT(CacheCluster::Create(options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'a:1' twice")));
  options.address = "a:0";
  for (int i = 1; i < 65; ++i) absl::StrAppend(&options.address, ",a:", i);
  EXPECT_THAT(CacheCluster::Create(options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("65 servers")));
  options.address = "a:1";
  options.max_attempts = 0;
  EXPECT_THAT(CacheCluster::Create(options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("max_attempts")));
}

TEST(CacheClusterCreateTest, RefusesNcclWithoutAGpu) {
  ClientOptions options;
  options.transport = Transport::kNccl;
  EXPECT_THAT(CacheCluster::Create(options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("nccl needs a GPU")));
  const NcclPort gpu =
      FakePort(std::make_shared<FakePairCalls>(std::make_shared<FakeLink>(), nullptr), 1);
  EXPECT_THAT(CacheCluster::Create(options, &gpu), IsOk());
}

TEST(CacheClusterCreateTest, NamesItsServersAsTheyWereGiven) {
  ClientOptions options;
  options.address = "unix:/nonexistent/a, unix:/nonexistent/b";
  const auto cluster = CacheCluster::Create(options);
  ASSERT_THAT(cluster, IsOk());
  ASSERT_EQ((*cluster)->servers().size(), 2u);
  EXPECT_EQ((*cluster)->servers()[1].address, "unix:/nonexistent/b");
  EXPECT_EQ((*cluster)->ServerFor({}, "unix:/nonexistent/c").address().substr(0, 18),
            "unix:/nonexistent/");
}

TEST(CacheClusterCreateTest, ACacheClientIsOfOneServer) {
  ClientOptions options;
  options.address = "a:1,b:1";
  EXPECT_THAT(CacheClient::Create(options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("several servers")));
  options.address = "unix:/nonexistent/a";
  const auto client = CacheClient::Create(options);
  ASSERT_THAT(client, IsOk());
  EXPECT_EQ(&(*client)->ServerFor({}, ""), client->get());
  EXPECT_EQ((*client)->address(), "unix:/nonexistent/a");
}

// Three servers whose states the test sets.
class CacheClusterTest : public testing::Test {
 protected:
  CacheClusterTest() {
    std::vector<ClusterServer> servers;
    for (int i = 0; i < 3; ++i) {
      auto connection = std::make_unique<ScriptedConnection>();
      connection->stats = [this, i](v1::StatsResponse& response) {
        MutexLock lock(&mu_);
        ++num_asked_[i];
        changed_.SignalAll();
        response.set_draining(states_[i] == ServerState::kDraining);
        return states_[i] == ServerState::kAway ? absl::UnavailableError("") : absl::OkStatus();
      };
      connection->lookup = [this, i](const v1::LookupRequest&, v1::LookupResponse& response) {
        MutexLock lock(&mu_);
        if (states_[i] == ServerState::kAway) return absl::UnavailableError("");
        response.add_blocks_per_variant(0);
        return absl::OkStatus();
      };
      servers.push_back({addresses_[i], std::move(connection)});
    }
    ClientOptions options = ImpatientOptions();
    options.probe_interval = absl::Milliseconds(1);
    options.statistics = statistics_;
    cluster_ = MakeCacheCluster(options, std::move(servers));
  }

  // And waits until the cluster knows.
  void Set(int server, ServerState state) {
    MutexLock lock(&mu_);
    states_[server] = state;
    const int wanted = num_asked_[server] + 2;
    while (num_asked_[server] < wanted) changed_.Wait(&mu_);
  }
  // Index of the server that is chosen.
  int Chosen(const std::string& hint = "") {
    const std::string address = cluster_->ServerFor(chain_, hint).address();
    for (int i = 0; i < 3; ++i) {
      if (addresses_[i] == address) return i;
    }
    return -1;
  }

  const std::vector<std::string> addresses_ = {"a:1", "b:1", "c:1"};
  const std::vector<Digest> chain_ = {TestDigest(1), TestDigest(2), TestDigest(3)};
  const std::vector<int> ranking_ = RankServers(AnchorOf(chain_), addresses_);
  const std::shared_ptr<CallStatistics> statistics_ = std::make_shared<CallStatistics>();
  Mutex mu_;
  CondVar changed_;
  std::vector<ServerState> states_ ABSL_GUARDED_BY(mu_) = {3, ServerState::kReady};
  std::vector<int> num_asked_ ABSL_GUARDED_BY(mu_) = {0, 0, 0};
  std::unique_ptr<CacheCluster> cluster_;
};

TEST_F(CacheClusterTest, ChoosesTheFirstOfTheRankingThatIsReady) {
  EXPECT_EQ(Chosen(), ranking_[0]);
  Set(ranking_[0], ServerState::kAway);
  EXPECT_EQ(Chosen(), ranking_[1]);
  Set(ranking_[1], ServerState::kDraining);
  EXPECT_EQ(Chosen(), ranking_[2]);
  Set(ranking_[0], ServerState::kReady);
  EXPECT_EQ(Chosen(), ranking_[0]) << "it is back, with nothing restarted";
}

TEST_F(CacheClusterTest, PrefersOneThatDrainsToNoneAndTheFirstWhenAllAreAway) {
  Set(ranking_[0], ServerState::kAway);
  Set(ranking_[1], ServerState::kAway);
  Set(ranking_[2], ServerState::kDraining);
  EXPECT_EQ(Chosen(), ranking_[2]);
  Set(ranking_[2], ServerState::kAway);
  EXPECT_EQ(Chosen(), ranking_[0]);
}

TEST_F(CacheClusterTest, TakesAHintUnlessThatServerIsAway) {
  const int hinted = ranking_[2];
  EXPECT_EQ(Chosen(addresses_[hinted]), hinted);
  Set(hinted, ServerState::kDraining);
  EXPECT_EQ(Chosen(addresses_[hinted]), hinted) << "gets go on";
  Set(hinted, ServerState::kAway);
  EXPECT_EQ(Chosen(addresses_[hinted]), ranking_[0]);
  EXPECT_EQ(Chosen("d:1"), ranking_[0]) << "nobody is called at an address that a caller made up";
}

TEST_F(CacheClusterTest, SaysHowItsServersAre) {
  Set(1, ServerState::kDraining);
  Set(2, ServerState::kAway);
  const std::vector<ServerStatus> servers = cluster_->servers();
  ASSERT_EQ(servers.size(), 3u);
  EXPECT_EQ(servers[0].state, ServerState::kReady);
  EXPECT_EQ(servers[1].state, ServerState::kDraining);
  EXPECT_EQ(servers[2].state, ServerState::kAway);
  EXPECT_EQ(servers[2].address, "c:1");
}

TEST_F(CacheClusterTest, CountsTheCallsOfAllServersTogetherAndItsOwnQuestionsNowhere) {
  const Variant variants[] = {{"default", 1}};
  for (const std::string& address : addresses_) {
    ASSERT_THAT(cluster_->ServerFor({}, address).Lookup(chain_, variants), IsOk());
  }
  Set(2, ServerState::kReady);
  const MethodStatistics lookups = statistics_->Read(CallMethod::kLookup);
  EXPECT_EQ(lookups.ended[static_cast<size_t>(absl::StatusCode::kOk)], 3u);
  EXPECT_EQ(statistics_->Read(CallMethod::kStats).in_flight, 0u);
  EXPECT_EQ(statistics_->Read(CallMethod::kStats).ended, MethodStatistics().ended);
  EXPECT_EQ(cluster_->counters().lookups, 3u);
}

TEST_F(CacheClusterTest, CountersAreThoseOfAllServers) {
  for (const std::string& address : addresses_) {
    const ObjectKey key = {ObjectKind::kBlock, TestDigest(1), {"default", 1}};
    EXPECT_FALSE(cluster_->ServerFor({}, address).StartGet({&key, 1})->WaitForManifest().ok());
  }
  EXPECT_EQ(cluster_->counters().gets, 3u);
  EXPECT_EQ(cluster_->counters().failures, 3u);
}

TEST(ClientCountersTest, EveryOneIsAdded) {
  using Fields = std::array<uint64_t, sizeof(ClientCounters) / sizeof(uint64_t)>;
  Fields fields{};
  std::iota(fields.begin(), fields.end(), uint64_t{1});
  ClientCounters sum = std::bit_cast<ClientCounters>(fields);
  sum += sum;
  for (uint64_t& field : fields) field *= 2;
  EXPECT_EQ(std::bit_cast<Fields>(sum), fields);
}

// Two servers with a GPU each, which are fakes as ours is: both hold every object.
class CacheClusterDeviceTest : public testing::Test {
 protected:
  CacheClusterDeviceTest() {
    std::vector<ClusterServer> servers;
    for (int i = 0; i < 2; ++i) {
      holders_[i].objects.push_back(MakeTestWindow(1, 1));
      auto connection = std::make_unique<ScriptedConnection>();
      // Nobody learns from asking alone whether it is there.
      connection->stats = [this](v1::StatsResponse&) {
        MutexLock lock(&mu_);
        while (!ends_) ends_changed_.Wait(&mu_);
        return absl::OkStatus();
      };
      holders_[i].Serve(*connection);
      servers.push_back({addresses_[i], std::move(connection)});
    }
    ClientOptions options = ImpatientOptions();
    options.transport = Transport::kNccl;
    const NcclPort gpu = FakePort(calls_, 2);
    cluster_ = MakeCacheCluster(options, std::move(servers), &gpu);
  }

  ~CacheClusterDeviceTest() override {
    MutexLock lock(&mu_);
    ends_ = true;
    ends_changed_.SignalAll();
  }

  CacheClient& Server(int i) { return cluster_->ServerFor({}, addresses_[i]); }
  // A get from server `i`, whole.
  absl::Status Get(int i) {
    const SealedObject& object = holders_[i].objects[0];
    const ObjectKey key = object.key();
    const auto get = Server(i).StartDeviceGet({&key, 1}, "");
    PKV_RETURN_IF_ERROR(get->WaitForAll());
    for (int layer = 0; layer < object.header.num_layers; ++layer) {
      EXPECT_TRUE(get->is_on_device(layer));
      EXPECT_TRUE(std::ranges::equal(get->frame(0, layer), object.frame(layer)));
    }
    return absl::OkStatus();
  }

  const std::vector<std::string> addresses_ = {"a:1", "b:1"};
  // NCCL knows all its processes.
  std::shared_ptr<FakeLink> link_ = std::make_shared<FakeLink>();
  ScriptedPairHolder holders_[2] = {ScriptedPairHolder(link_), ScriptedPairHolder(link_)};
  std::shared_ptr<FakePairCalls> calls_ = std::make_shared<FakePairCalls>(link_, nullptr);
  Mutex mu_;
  CondVar ends_changed_;
  bool ends_ ABSL_GUARDED_BY(mu_) = false;
  std::unique_ptr<CacheCluster> cluster_;
};

TEST_F(CacheClusterDeviceTest, FramesComeToTheGpuFromTheServerThatIsAskedOverAPairOfItsOwn) {
  EXPECT_THAT(Get(1), IsOk());
  EXPECT_TRUE(holders_[0].requests.empty()) << "nobody asked it";
  EXPECT_THAT(Get(0), IsOk());
  EXPECT_THAT(Get(1), IsOk());
  EXPECT_EQ(holders_[0].requests.size(), 1u + 1) << "a hello, a fetch";
  EXPECT_EQ(holders_[1].requests.size(), 1u + 2);
  EXPECT_EQ(Server(0).counters().nccl_gets, 1u);
  EXPECT_EQ(Server(1).counters().nccl_gets, 2u);
}

TEST_F(CacheClusterDeviceTest, AServerThatGoesTakesItsPairAloneWithIt) {
  EXPECT_THAT(Get(0), IsOk());
  EXPECT_THAT(Get(1), IsOk());
  holders_[0].stream->End(absl::UnavailableError("killed"));
  EXPECT_EQ(cluster_->servers()[0].state, ServerState::kAway) << "its pair's call said so";
  EXPECT_EQ(cluster_->servers()[1].state, ServerState::kReady);
  EXPECT_THAT(Get(1), IsOk());
  EXPECT_EQ(holders_[1].requests.front().kind_case(), v1::PairRequest::kHello);
  EXPECT_EQ(holders_[1].requests.size(), 1u + 2) << "over the pair that was there";
}

}  // namespace
}  // namespace pkv
