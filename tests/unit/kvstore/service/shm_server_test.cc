#include "kvstore/service/shm_server.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/transport/host_identity.h"
#include "tests/support/shm_messages.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/kvstore/service/service_fixture.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

class ShmServerTest : public ServiceFixture {
 protected:
  void SetUp() override {
    MakeService(16);
    ASSERT_THAT(Put(object_), IsOk());
    options_.path = absl::StrCat(::testing::TempDir(), "/shm_server.", getpid());
    options_.limits.connection_pinned_bytes = 8 * kArenaUnitBytes;
    options_.limits.total_pinned_bytes = 12 * kArenaUnitBytes;
  }
  void TearDown() override { server_.reset(); }

  void Start() {
    auto server = ShmServer::Start(options_, store_.get(), &metrics_, Clock::Real());
    ASSERT_THAT(server, IsOk());
    server_ = *std::move(server);
    v1::HandoffOpenRequest request;
    request.set_shm_version(kShmVersion);
    request.set_host_id(HostIdentity());
    offer_ = server_->Answer(request).shm();
  }

  // A client that was welcomed and has pinned the object.
  std::unique_ptr<ShmTestClient> PinnedClient() {
    auto client = std::make_unique<ShmTestClient>(options_.path);
    EXPECT_TRUE(client->Ask(ShmHelloOf(offer_.token()))->has_welcome());
    const ObjectKey key = object_.key();
    pinned_ = client->Ask(ShmPinOf(1, {&key, 1}))->pinned();
    EXPECT_EQ(pinned_.extents_size(), 1);
    EXPECT_GT(store_->stats().pinned_bytes, 0u);
    return client;
  }

  // The server's thread is another one: asks until it has come to it.
  template <typename ConditionT>
  bool Eventually(const ConditionT& condition) {
    const absl::Time deadline = Clock::Real()->MonotonicNow() + absl::Minutes(1);
    while (Clock::Real()->MonotonicNow() < deadline) {
      if (condition()) return true;
      std::this_thread::yield();
    }
    return false;
  }
  bool EventuallyEnded(const std::string& reason, int count = 1) {
    return Eventually([&] {
      return Metric(absl::StrCat("pkv_shm_ended_total{reason=\"", reason, "\"}")) == count;
    });
  }
  bool EventuallyNothingPinned() {
    return Eventually([&] { return store_->stats().pinned_bytes == 0; });
  }

  const SealedObject object_ = MakeTestWindow(1, 1);
  ShmServerOptions options_;
  std::unique_ptr<ShmServer> server_;
  v1::ShmOffer offer_;
  v1::ShmPinned pinned_;
};

TEST_F(ShmServerTest, OffersItselfToReadersOfThisHostOnly) {
  Start();
  EXPECT_EQ(offer_.socket_path(), options_.path);
  EXPECT_EQ(offer_.token().size(), kShmTokenBytes);
  EXPECT_EQ(offer_.host_id(), HostIdentity());
  v1::HandoffOpenRequest request;
  request.set_shm_version(kShmVersion);
  for (const std::string& host : {std::string(), std::string("another")}) {
    request.set_host_id(host);
    EXPECT_FALSE(server_->Answer(request).has_shm());
    EXPECT_THAT(server_->Answer(request).reason(), HasSubstr("host"));
  }
  request.set_host_id(HostIdentity());
  request.set_shm_version(0);
  EXPECT_FALSE(server_->Answer(request).has_shm());
}

TEST_F(ShmServerTest, EveryServerDrawsAnotherToken) {
  Start();
  const std::string first = offer_.token();
  server_.reset();
  Start();
  EXPECT_NE(offer_.token(), first);
}

TEST_F(ShmServerTest, ItsSocketIsOursAloneUnlessToldOtherwise) {
  for (const auto& [any_user, mode] : {std::pair{false, 0600u}, std::pair{true, 0666u}}) {
    options_.any_user = any_user;
    server_.reset();
    Start();
    struct stat info {};
    ASSERT_EQ(stat(options_.path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, mode);
  }
}

TEST_F(ShmServerTest, LendsTheStoredBytesReadOnly) {
  Start();
  const auto client = PinnedClient();
  ASSERT_TRUE(client->memory());
  EXPECT_EQ(fcntl(client->memory().get(), F_GETFL) & O_ACCMODE, O_RDONLY);
  const uint64_t capacity = store_->stats().capacity_bytes;
  void* mapped = mmap(nullptr, capacity, PROT_READ, MAP_SHARED, client->memory().get(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  EXPECT_EQ(std::memcmp(static_cast<char*>(mapped) + pinned_.extents(0).offset(),
                        object_.bytes().data(), object_.bytes().size()),
            0);
  munmap(mapped, capacity);
}

TEST_F(ShmServerTest, AClientThatGoesGivesBackItsPins) {
  Start();
  auto client = PinnedClient();
  EXPECT_TRUE(Eventually([&] { return Metric("pkv_shm_connections") == 1; }));
  EXPECT_TRUE(Eventually([&] {
    return Metric("pkv_shm_pinned_bytes") == static_cast<double>(object_.bytes().size());
  }));
  client->Close();
  EXPECT_TRUE(EventuallyNothingPinned());
  EXPECT_TRUE(EventuallyEnded("client"));
  EXPECT_TRUE(Eventually([&] { return Metric("pkv_shm_connections") == 0; }));
  EXPECT_TRUE(Eventually([&] { return Metric("pkv_shm_pinned_bytes") == 0; }));
}

TEST_F(ShmServerTest, LendsAStageToWhoPutsAndTakesItBack) {
  Start();
  ShmTestClient client(options_.path);
  const auto answer = client.Ask(ShmPutHelloOf(offer_.token()));
  ASSERT_TRUE(answer.has_value());
  const v1::ShmWelcome& welcome = answer->welcome();
  ASSERT_TRUE(client.memory());
  EXPECT_EQ(ftruncate(client.memory().get(), 0), -1);
  void* mapped = mmap(nullptr, welcome.stage_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED,
                      client.memory().get(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  std::memcpy(mapped, "from the client", 15);
  {
    const auto stage = server_->stages()->Find(welcome.stage_token());
    ASSERT_NE(stage, nullptr);
    std::string text(15, '\0');
    EXPECT_THAT(stage->Read(0, std::as_writable_bytes(std::span(text))), IsOk());
    EXPECT_EQ(text, "from the client");
  }
  EXPECT_TRUE(Eventually([&] { return Metric("pkv_shm_stage_bytes") == kShmStageBytes; }));
  client.Close();
  EXPECT_TRUE(Eventually([&] { return Metric("pkv_shm_stage_bytes") == 0; }));
  EXPECT_EQ(server_->stages()->Find(welcome.stage_token()), nullptr);
  // Nobody reads there any more, and the client is no worse off for it.
  std::memcpy(mapped, "once more", 9);
  munmap(mapped, welcome.stage_bytes());
}

TEST_F(ShmServerTest, LendsNoMoreStagesThanItMay) {
  Start();
  std::vector<std::unique_ptr<ShmTestClient>> clients;
  for (int i = 0; i < kMaxShmStages; ++i) {
    clients.push_back(std::make_unique<ShmTestClient>(options_.path));
    ASSERT_TRUE(clients.back()->Ask(ShmPutHelloOf(offer_.token()))->has_welcome());
  }
  ShmTestClient late(options_.path);
  const auto answer = late.Ask(ShmPutHelloOf(offer_.token()));
  ASSERT_TRUE(answer.has_value());
  EXPECT_TRUE(answer->has_welcome());
  EXPECT_TRUE(answer->welcome().stage_token().empty());
  EXPECT_FALSE(late.memory());
  EXPECT_FALSE(late.Receive().has_value());
  EXPECT_TRUE(EventuallyEnded("full"));
  EXPECT_TRUE(clients[0]->Ask(ShmRenewMessage())->has_renewed());
}

TEST_F(ShmServerTest, WhatIsNotTheProtocolEndsTheConnectionAndItsPins) {
  Start();
  int ended = 0;
  for (const std::string& bytes :
       {std::string("\xff\xff\xff\xff"), std::string("\x01\x00\x00\x00\xff", 5),
        EncodeShmMessage(ShmUnpinOf(77))}) {
    auto client = PinnedClient();
    client->SendBytes(bytes);
    EXPECT_FALSE(client->Receive().has_value());
    EXPECT_TRUE(EventuallyEnded("malformed", ++ended));
    EXPECT_TRUE(EventuallyNothingPinned());
  }
}

TEST_F(ShmServerTest, AnotherServersTokenIsRefused) {
  Start();
  ShmTestClient client(options_.path);
  EXPECT_FALSE(client.Ask(ShmHelloOf(std::string(kShmTokenBytes, 'x'))).has_value());
  EXPECT_FALSE(client.memory());
  EXPECT_TRUE(EventuallyEnded("refused"));
}

TEST_F(ShmServerTest, TakesNoMoreConnectionsThanItMay) {
  options_.max_connections = 1;
  Start();
  auto first = PinnedClient();
  ShmTestClient second(options_.path);
  EXPECT_FALSE(second.Receive().has_value());
  EXPECT_TRUE(EventuallyEnded("full"));
  EXPECT_TRUE(first->Ask(ShmRenewMessage())->has_renewed());
}

// A stopped client: nothing but its silence tells.
TEST_F(ShmServerTest, SilenceEndsAConnectionAndItsPins) {
  options_.limits.silence = absl::Milliseconds(100);
  Start();
  const auto client = PinnedClient();
  EXPECT_FALSE(client->Receive().has_value());
  EXPECT_TRUE(IsHungUp(client->socket()));
  EXPECT_TRUE(EventuallyEnded("silent"));
  EXPECT_TRUE(EventuallyNothingPinned());
}

TEST_F(ShmServerTest, APinHeldForTooLongEndsTheConnectionThoughItRenews) {
  options_.limits.silence = options_.limits.pin_age = absl::Milliseconds(300);
  Start();
  const auto client = PinnedClient();
  const std::string renew = EncodeShmMessage(ShmRenewMessage());
  while (SendSome(client->socket(), std::as_bytes(std::span(renew))).ok() &&
         client->Receive().has_value()) {
  }
  EXPECT_TRUE(EventuallyEnded("held"));
  EXPECT_TRUE(EventuallyNothingPinned());
}

// It is not read from until it reads, and nobody else waits for it.
TEST_F(ShmServerTest, AClientThatDoesNotReadHarmsNobody) {
  Start();
  const auto greedy = PinnedClient();
  const std::string renew = EncodeShmMessage(ShmRenewMessage());
  std::string many;
  for (int i = 0; i < 4096; ++i) many += renew;
  for (size_t sent = 1; sent > 0;) {
    sent = SendSome(greedy->socket(), std::as_bytes(std::span(many))).value_or(0);
  }
  const auto other = PinnedClient();
  EXPECT_TRUE(other->Ask(ShmRenewMessage())->has_renewed());
}

TEST_F(ShmServerTest, StoppingShutsConnectionsDownAndEndsTheirPins) {
  Start();
  const auto client = PinnedClient();
  server_->Stop();
  server_->Stop();
  EXPECT_EQ(store_->stats().pinned_bytes, 0u);
  EXPECT_TRUE(IsHungUp(client->socket()));
  EXPECT_FALSE(ConnectLocal(options_.path, absl::Seconds(1)).ok());
  EXPECT_EQ(Metric("pkv_shm_ended_total{reason=\"stopped\"}"), 1);
}

TEST_F(ShmServerTest, RefusesLimitsThatLeaveNothing) {
  for (auto change : {+[](ShmServerOptions& o) { o.max_connections = 0; },
                      +[](ShmServerOptions& o) { o.limits.connection_pinned_bytes = 0; },
                      +[](ShmServerOptions& o) { o.limits.total_pinned_bytes = 1; },
                      +[](ShmServerOptions& o) { o.limits.silence = absl::Milliseconds(99); },
                      +[](ShmServerOptions& o) { o.limits.pin_age = absl::Milliseconds(200); }}) {
    ShmServerOptions options = options_;
    options.limits.silence = absl::Seconds(1);
    change(options);
    EXPECT_THAT(ShmServer::Start(options, store_.get(), &metrics_, Clock::Real()),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

TEST_F(ShmServerTest, RefusesAPathThatReadersCannotResolve) {
  for (const std::string& path :
       {std::string(), std::string("shm.sock"), "/" + std::string(200, 'x')}) {
    options_.path = path;
    EXPECT_THAT(ShmServer::Start(options_, store_.get(), &metrics_, Clock::Real()),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

TEST_F(ShmServerTest, RefusesAPathThatIsInUse) {
  Start();
  EXPECT_THAT(ShmServer::Start(options_, store_.get(), &metrics_, Clock::Real()),
              StatusIs(absl::StatusCode::kUnavailable));
}

class ShmServerOnDiskTest : public ShmServerTest {
 protected:
  void SetUp() override {
    MakeLog();
    ShmServerTest::SetUp();
    options_.disk = parts_.disk;
    MoveToDisk(object_);
  }
};

TEST_F(ShmServerOnDiskTest, AnswersAPinOnceTheDiskWasRead) {
  Start();
  const auto client = PinnedClient();
  EXPECT_EQ(pinned_.extents(0).code(), 0);
  EXPECT_EQ(pinned_.extents(0).bytes(), object_.bytes().size());
  EXPECT_EQ(Metric("pkv_tier_hits_total{tier=\"ssd\"}"), 1);
}

// Its reader is gone, and so is the server, before the disk has answered.
TEST_F(ShmServerOnDiskTest, MayEndBeforeTheDiskHasAnswered) {
  Mutex mu;
  CondVar changed;
  bool reads = false, is_open = false;
  disk_.SetFault([&](FakeDisk::Call call) {
    if (call != FakeDisk::Call::kRead) return absl::OkStatus();
    MutexLock lock(&mu);
    reads = true;
    changed.SignalAll();
    while (!is_open) changed.Wait(&mu);
    return absl::OkStatus();
  });
  Start();
  {
    ShmTestClient client(options_.path);
    EXPECT_TRUE(client.Ask(ShmHelloOf(offer_.token()))->has_welcome());
    const ObjectKey key = object_.key();
    client.Send(ShmPinOf(1, {&key, 1}));
    MutexLock lock(&mu);
    while (!reads) changed.Wait(&mu);
  }
  server_.reset();
  {
    MutexLock lock(&mu);
    is_open = true;
    changed.SignalAll();
  }
  pager_.reset();
  EXPECT_EQ(store_->stats().pinned_bytes, 0u);
}

}  // namespace
}  // namespace pkv
