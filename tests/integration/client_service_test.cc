// The SDK against the service, in one process and over a loopback port: what was put comes back
// byte for byte or not at all, and nothing stays behind when a caller goes.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvstore/service/cache_server.h"
#include "pkv/client/cache_client.h"
#include "proto/base/clock.h"
#include "tests/support/arena_memory.h"
#include "tests/support/scripted_pair_holder.h"
#include "tests/support/sealed_object.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::ElementsAre;
using ::testing::Gt;
using ::testing::HasSubstr;
using ::testing::Le;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr absl::Duration kPatience = absl::Seconds(30);

// Over gRPC and over shm, where a get is read in place and what is put is copied from a stage: to
// the caller it is the same.
class ClientServiceTest : public testing::TestWithParam<Transport> {
 protected:
  explicit ClientServiceTest(uint64_t capacity_bytes = 96 * kMiB) {
    CacheServerOptions options;
    options.listen = "127.0.0.1:0";
    options.metrics_listen = "";
    options.capacity_bytes = capacity_bytes;
    options.shm_pinned_bytes = capacity_bytes;
    options.shm_socket = absl::StrCat(::testing::TempDir(), "/client_service.shm.", getpid());
    auto server = CacheServer::Start(options);
    EXPECT_THAT(server, IsOk());
    server_ = *std::move(server);
    client_ = MakeClient({});
  }
  ~ClientServiceTest() override {
    const ClientCounters counters = client_->counters();
    EXPECT_EQ(counters.shm_put_bytes, GetParam() == Transport::kShm ? counters.put_bytes : 0);
    client_.reset();
    server_->Shutdown(absl::Seconds(5));
  }

  std::unique_ptr<CacheClient> MakeClient(ClientOptions options) {
    options.address = absl::StrCat("127.0.0.1:", server_->port());
    options.transport = GetParam();
    return *CacheClient::Create(options);
  }

  std::vector<PutOutcome> Put(const std::vector<const SealedObject*>& objects) {
    std::vector<std::span<const std::byte>> bytes;
    for (const SealedObject* object : objects) bytes.push_back(object->bytes());
    return client_->Put(bytes);
  }
  PutOutcome Put(const SealedObject& object) { return Put(std::vector{&object})[0]; }

  absl::Status GetStatus(const SealedObject& object) {
    const ObjectKey key = object.key();
    return client_->Get({&key, 1}).status();
  }

  void ExpectStored(const SealedObject& object) {
    const ObjectKey key = object.key();
    const auto got = client_->Get({&key, 1});
    ASSERT_THAT(got, IsOk());
    EXPECT_TRUE(std::ranges::equal((*got)[0].span(), object.bytes()));
  }

  ServerStats Stats() {
    const auto stats = client_->Stats();
    EXPECT_THAT(stats, IsOk());
    return stats.value_or(ServerStats{});
  }

  // The server learns of a cancellation a little later than the client: asks until it has.
  template <typename ConditionT>
  bool Eventually(const ConditionT& condition) {
    const absl::Time deadline = Clock::Real()->MonotonicNow() + kPatience;
    while (Clock::Real()->MonotonicNow() < deadline) {
      if (condition(Stats())) return true;
    }
    return false;
  }

  std::unique_ptr<CacheServer> server_;
  std::unique_ptr<CacheClient> client_;
};

// Frames of 1 MiB.
SealedObject MakeLargeObject(uint64_t id, int num_layers) {
  ObjectHeader header = TestHeader(ObjectKind::kWindow, id, num_layers);
  header.num_tokens = kMaxWindowTokens;
  return SealTestObject(header, static_cast<uint32_t>(id), /*random_bytes=*/4096);
}

TEST_P(ClientServiceTest, EveryKindComesBackByteForByte) {
  const SealedObject table = MakeTestTable(1);
  const SealedObject block = MakeTestBlock(2, 2, table.header.id);
  const SealedObject window = MakeTestWindow(3, 3, /*num_tokens=*/77, /*num_layers=*/5);
  for (const PutOutcome& outcome : Put({&table, &block, &window})) {
    EXPECT_THAT(outcome.status, IsOk());
    EXPECT_TRUE(outcome.stored);
  }
  ExpectStored(table);
  ExpectStored(block);
  ExpectStored(window);

  const std::vector<Digest> ids = {block.header.id, TestDigest(99)};
  const std::vector<Variant> variants = {{"other", 7}, block.header.variant()};
  const auto found = client_->Lookup(ids, variants);
  ASSERT_THAT(found, IsOk());
  EXPECT_EQ(found->variant_index, 1);
  EXPECT_EQ(found->num_blocks, 1);
  EXPECT_EQ(found->bytes, block.bytes().size());
  EXPECT_THAT(found->table_ids, ElementsAre(table.header.id));
  EXPECT_THAT(found->blocks_per_variant, ElementsAre(0, 1));
}

TEST_P(ClientServiceTest, ObjectsOfSeveralKindsArriveTogether) {
  const SealedObject table = MakeTestTable(1);
  const SealedObject block = MakeTestBlock(2, 2, table.header.id);
  const SealedObject window = MakeTestWindow(3, 3, 1, /*num_layers=*/5);
  Put({&table, &block, &window});
  const std::vector<ObjectKey> keys = {window.key(), table.key(), block.key()};
  const auto got = client_->Get(keys);
  ASSERT_THAT(got, IsOk());
  EXPECT_TRUE(std::ranges::equal((*got)[0].span(), window.bytes()));
  EXPECT_TRUE(std::ranges::equal((*got)[1].span(), table.bytes()));
  EXPECT_TRUE(std::ranges::equal((*got)[2].span(), block.bytes()));
}

TEST_P(ClientServiceTest, EqualBytesPutTwiceAreSuccessWithoutPayload) {
  const SealedObject block = MakeTestBlock(1, 1);
  EXPECT_TRUE(Put(block).stored);
  const uint64_t sent = client_->counters().put_bytes;
  const PutOutcome again = Put(block);
  EXPECT_THAT(again.status, IsOk());
  EXPECT_FALSE(again.stored);
  EXPECT_EQ(client_->counters().put_bytes, sent);
  EXPECT_EQ(Stats().num_objects, 1u);
}

TEST_P(ClientServiceTest, OtherBytesUnderOneKeyAreRefused) {
  const SealedObject first = MakeTestBlock(1, /*seed=*/1);
  const SealedObject second = MakeTestBlock(1, /*seed=*/2);
  EXPECT_THAT(Put(first).status, IsOk());
  EXPECT_THAT(Put(second).status, StatusIs(absl::StatusCode::kAlreadyExists));
  ExpectStored(first);
}

// Both puts begin before either commits: the later commit is compared byte for byte.
TEST_P(ClientServiceTest, LaterOfTwoConcurrentPutsIsComparedAtItsCommit) {
  const SealedObject first = MakeTestBlock(1, /*seed=*/1);
  const SealedObject equal = MakeTestBlock(1, /*seed=*/1);
  const SealedObject other = MakeTestBlock(1, /*seed=*/2);
  const ObjectDescriptor descriptor = {first.key(), 2, first.header.frame_bytes};
  std::vector<std::unique_ptr<PutStream>> streams;
  for (int i = 0; i < 3; ++i) streams.push_back(*client_->StartPut({&descriptor, 1}));
  std::vector<PutOutcome> outcomes;
  for (const SealedObject* object : {&first, &equal, &other}) {
    PutStream& stream = *streams[outcomes.size()];
    EXPECT_THAT(stream.decisions(), ElementsAre(PutDecision::kWanted));
    for (int layer = 0; layer < 2; ++layer) {
      const std::span<const std::byte> frame = object->frame(layer);
      EXPECT_THAT(stream.WriteLayer(layer, {&frame, 1}), IsOk());
    }
    EXPECT_THAT(stream.Commit(0, object->head()), IsOk());
    outcomes.push_back(stream.Finish()[0]);
  }
  EXPECT_TRUE(outcomes[0].stored);
  EXPECT_THAT(outcomes[1].status, IsOk());
  EXPECT_FALSE(outcomes[1].stored);
  EXPECT_THAT(outcomes[2].status, StatusIs(absl::StatusCode::kAlreadyExists));
}

TEST_P(ClientServiceTest, BlockNeedsItsTable) {
  const SealedObject table = MakeTestTable(1);
  const SealedObject block = MakeTestBlock(2, 2, table.header.id);
  EXPECT_THAT(Put(block).status, StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(GetStatus(block), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(Put(table).status, IsOk());
  EXPECT_THAT(Put(block).status, IsOk());
}

TEST_P(ClientServiceTest, DamagedPayloadIsRefusedOnArrival) {
  SealedObject block = MakeTestBlock(1, 1);
  block.buffer.data()[block.bytes().size() - block.header.frame_bytes] ^= std::byte{1};
  EXPECT_THAT(Put(block).status, StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(GetStatus(block), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(client_->counters().integrity_failures, 1u);
}

TEST_P(ClientServiceTest, LayersStreamInAndNothingIsVisibleBeforeTheCommit) {
  const SealedObject window = MakeTestWindow(1, 1, /*num_tokens=*/500, /*num_layers=*/12);
  const SealedObject block = MakeTestBlock(2, 2, {}, /*num_layers=*/12);
  const std::vector<ObjectDescriptor> descriptors = {{window.key(), 12, window.header.frame_bytes},
                                                     {block.key(), 12, block.header.frame_bytes}};
  auto put = client_->StartPut(descriptors);
  ASSERT_THAT(put, IsOk());
  for (int layer = 0; layer < 12; ++layer) {
    const std::vector<std::span<const std::byte>> frames = {window.frame(layer),
                                                            block.frame(layer)};
    ASSERT_THAT((*put)->WriteLayer(layer, frames), IsOk());
    EXPECT_THAT(GetStatus(window), StatusIs(absl::StatusCode::kNotFound));
  }
  EXPECT_THAT((*put)->Commit(0, window.head()), IsOk());
  EXPECT_THAT((*put)->Commit(1, block.head()), IsOk());
  for (const PutOutcome& outcome : (*put)->Finish()) EXPECT_THAT(outcome.status, IsOk());

  const std::vector<ObjectKey> keys = {window.key(), block.key()};
  const std::unique_ptr<GetStream> get = client_->StartGet(keys);
  for (int layer = 0; layer < 12; ++layer) {
    ASSERT_THAT(get->WaitForLayer(layer), IsOk());
    EXPECT_TRUE(std::ranges::equal(get->frame(0, layer), window.frame(layer)));
    EXPECT_TRUE(std::ranges::equal(get->frame(1, layer), block.frame(layer)));
  }
  EXPECT_THAT(get->WaitForAll(), IsOk());
}

TEST_P(ClientServiceTest, FourThousandAndNinetySixObjectsTravelInOneCall) {
  std::vector<SealedObject> objects;
  std::vector<std::span<const std::byte>> bytes;
  std::vector<ObjectKey> keys;
  for (uint64_t id = 0; id < 4096; ++id) {
    objects.push_back(MakeTestWindow(1000 + id, static_cast<uint32_t>(id)));
    bytes.push_back(objects.back().bytes());
    keys.push_back(objects.back().key());
  }
  for (const PutOutcome& outcome : client_->Put(bytes)) ASSERT_THAT(outcome.status, IsOk());
  const auto got = client_->Get(keys);
  ASSERT_THAT(got, IsOk());
  for (size_t i = 0; i < objects.size(); ++i) {
    ASSERT_TRUE(std::ranges::equal((*got)[i].span(), objects[i].bytes())) << i;
  }
  const auto stats = client_->Stat(keys);
  ASSERT_THAT(stats, IsOk());
  EXPECT_TRUE(std::ranges::all_of(*stats, &ObjectStat::present));
  EXPECT_THAT(client_->Delete(keys), IsOkAndHolds(4096));
  EXPECT_EQ(Stats().num_objects, 0u);
}

TEST_P(ClientServiceTest, MissNamesTheObject) {
  const SealedObject here = MakeTestBlock(1, 1);
  const SealedObject away = MakeTestBlock(2, 2);
  EXPECT_THAT(Put(here).status, IsOk());
  const std::vector<ObjectKey> keys = {here.key(), away.key()};
  const std::unique_ptr<GetStream> get = client_->StartGet(keys);
  EXPECT_THAT(get->WaitForManifest(), StatusIs(absl::StatusCode::kNotFound, HasSubstr("object 1")));
  EXPECT_EQ(client_->counters().failures, 0u);
}

TEST_P(ClientServiceTest, ObjectDeletedAfterTheLookupIsNotFound) {
  const SealedObject block = MakeTestBlock(1, 1);
  EXPECT_THAT(Put(block).status, IsOk());
  const Digest id = block.header.id;
  const Variant variant = block.header.variant();
  EXPECT_EQ(client_->Lookup({&id, 1}, {&variant, 1})->num_blocks, 1);
  const ObjectKey key = block.key();
  EXPECT_THAT(client_->Delete({&key, 1}), IsOkAndHolds(1));
  EXPECT_THAT(client_->Delete({&key, 1}), IsOkAndHolds(0));
  EXPECT_THAT(client_->StartGet({&key, 1})->WaitForManifest(),
              StatusIs(absl::StatusCode::kNotFound));
}

TEST_P(ClientServiceTest, CancelledGetLeavesNoPin) {
  const SealedObject object = MakeLargeObject(1, /*num_layers=*/64);
  EXPECT_THAT(Put(object).status, IsOk());
  const ObjectKey key = object.key();
  const std::unique_ptr<GetStream> get = client_->StartGet({&key, 1});
  ASSERT_THAT(get->WaitForLayer(0), IsOk());
  get->Cancel();
  EXPECT_THAT(get->WaitForAll(), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_TRUE(Eventually([](const ServerStats& stats) { return stats.pinned_bytes == 0; }));
}

TEST_P(ClientServiceTest, AbandonedPutLeavesNoReservation) {
  const SealedObject object = MakeLargeObject(1, /*num_layers=*/8);
  const ObjectDescriptor descriptor = {object.key(), 8, object.header.frame_bytes};
  {
    auto put = client_->StartPut({&descriptor, 1});
    ASSERT_THAT(put, IsOk());
    const std::span<const std::byte> frame = object.frame(0);
    EXPECT_THAT((*put)->WriteLayer(0, {&frame, 1}), IsOk());
    EXPECT_THAT(Stats().reserved_bytes, Gt(8 * kMiB));
  }
  EXPECT_TRUE(Eventually([](const ServerStats& stats) { return stats.reserved_bytes == 0; }));
  EXPECT_THAT(GetStatus(object), StatusIs(absl::StatusCode::kNotFound));
}

TEST_P(ClientServiceTest, GetEndsAtItsDeadline) {
  const SealedObject object = MakeLargeObject(1, /*num_layers=*/64);
  EXPECT_THAT(Put(object).status, IsOk());
  ClientOptions options;
  // Over shm a millisecond may be enough to dial and to pin.
  options.get_deadline =
      GetParam() == Transport::kShm ? absl::Microseconds(1) : absl::Milliseconds(1);
  const ObjectKey key = object.key();
  EXPECT_THAT(MakeClient(options)->Get({&key, 1}), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_P(ClientServiceTest, DamageInTheServersMemoryIsDataLossAndThenAMiss) {
  const SealedObject block = MakeTestBlock(1, 1);
  EXPECT_THAT(Put(block).status, IsOk());
  const std::span<const std::byte> frame = block.frame(1);
  ASSERT_TRUE(ArenaMemory(getpid()).FlipBit(
      {reinterpret_cast<const char*>(frame.data()), frame.size()}, /*offset=*/0));
  EXPECT_THAT(GetStatus(block), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(GetStatus(block), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(Put(block).status, IsOk());
  ExpectStored(block);
}

TEST_P(ClientServiceTest, DrainingServerRefusesPutsAndServesGets) {
  const SealedObject block = MakeTestBlock(1, 1);
  EXPECT_THAT(Put(block).status, IsOk());
  EXPECT_THAT(client_->Drain(), IsOk());
  EXPECT_TRUE(Stats().draining);
  EXPECT_THAT(Put(MakeTestBlock(2, 2)).status, StatusIs(absl::StatusCode::kUnavailable));
  ExpectStored(block);
}

TEST_P(ClientServiceTest, ManyThreadsShareOneClient) {
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      for (uint64_t i = 0; i < 10; ++i) {
        const SealedObject mine = MakeTestWindow(100 * t + i, 1, /*num_tokens=*/300);
        const SealedObject shared = MakeTestBlock(5000 + i, 1);
        for (const PutOutcome& outcome : Put({&mine, &shared})) {
          EXPECT_THAT(outcome.status, IsOk());
        }
        ExpectStored(mine);
        ExpectStored(shared);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(Stats().num_objects, 4 * 10 + 10u);
}

// More than the slots of a stage hold, of several puts at once: each goes round its slots.
TEST_P(ClientServiceTest, LargePutsAtOnceStoreTheBytesOfEach) {
  std::vector<std::thread> threads;
  for (uint64_t id = 1; id <= 4; ++id) {
    threads.emplace_back([this, id] {
      const SealedObject object = MakeLargeObject(id, /*num_layers=*/8);
      const ObjectDescriptor descriptor = {object.key(), 8, object.header.frame_bytes};
      const auto put = client_->StartPut({&descriptor, 1});
      ASSERT_THAT(put, IsOk());
      for (int layer = 0; layer < 8; ++layer) {
        const std::span<const std::byte> frame = object.frame(layer);
        ASSERT_THAT((*put)->WriteLayer(layer, {&frame, 1}), IsOk());
      }
      EXPECT_THAT((*put)->Commit(0, object.head()), IsOk());
      EXPECT_THAT((*put)->Finish()[0].status, IsOk());
      ExpectStored(object);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

class SmallServerTest : public ClientServiceTest {
 protected:
  SmallServerTest() : ClientServiceTest(/*capacity_bytes=*/16 * kMiB) {}
};

TEST_P(SmallServerTest, OldestObjectsMakeRoom) {
  std::vector<SealedObject> objects;
  for (uint64_t id = 1; id <= 20; ++id) {
    objects.push_back(MakeLargeObject(id, /*num_layers=*/2));
    ASSERT_THAT(Put(objects.back()).status, IsOk()) << id;
    EXPECT_THAT(Stats().resident_bytes, Le(Stats().capacity_bytes));
  }
  EXPECT_THAT(Stats().num_evictions, Gt(0u));
  ExpectStored(objects.back());
  EXPECT_THAT(GetStatus(objects.front()), StatusIs(absl::StatusCode::kNotFound));
}

TEST_P(SmallServerTest, PutOfMoreThanTheMemoryKeepsWhatFits) {
  std::vector<SealedObject> objects;
  std::vector<const SealedObject*> pointers;
  for (uint64_t id = 1; id <= 20; ++id) objects.push_back(MakeLargeObject(id, /*num_layers=*/2));
  for (const SealedObject& object : objects) pointers.push_back(&object);
  // Objects of one stream are reserved together; those refused at first come later.
  for (const PutOutcome& outcome : Put(pointers)) EXPECT_THAT(outcome.status, IsOk());
}

TEST_P(SmallServerTest, ObjectLargerThanTheMemoryIsRefused) {
  EXPECT_THAT(Put(MakeLargeObject(1, /*num_layers=*/20)).status,
              StatusIs(absl::StatusCode::kResourceExhausted));
}

std::string NameOf(const testing::TestParamInfo<Transport>& transport) {
  return transport.param == Transport::kShm ? "shm" : "grpc";
}
INSTANTIATE_TEST_SUITE_P(Transports, ClientServiceTest,
                         testing::Values(Transport::kGrpc, Transport::kShm), NameOf);
INSTANTIATE_TEST_SUITE_P(Transports, SmallServerTest,
                         testing::Values(Transport::kGrpc, Transport::kShm), NameOf);

// Both ends of the nccl transport, each with a GPU of its own, which is a fake: device memory is
// host memory here.
class NcclServiceTest : public testing::Test {
 protected:
  NcclServiceTest() {
    CacheServerOptions options;
    options.listen = "127.0.0.1:0";
    options.metrics_listen = "";
    options.capacity_bytes = 96 * kMiB;
    options.nccl = std::make_shared<const NcclPort>(FakePort(server_calls_, 1));
    server_ = *CacheServer::Start(options);
    for (uint64_t id = 1; id <= 3; ++id) {
      objects_.push_back(MakeLargeObject(id, /*num_layers=*/4));
      keys_.push_back(objects_.back().key());
      const std::span<const std::byte> bytes = objects_.back().bytes();
      EXPECT_THAT(MakeClient(Transport::kGrpc)->Put({&bytes, 1})[0].status, IsOk());
    }
  }
  ~NcclServiceTest() override {
    server_->Shutdown(absl::Seconds(5));
    server_.reset();
    EXPECT_TRUE(server_calls_->IsSoonEmpty());
    EXPECT_TRUE(calls_->IsSoonEmpty());
  }

  std::unique_ptr<CacheClient> MakeClient(Transport transport) {
    ClientOptions options;
    options.address = absl::StrCat("127.0.0.1:", server_->port());
    options.transport = transport;
    const NcclPort port = FakePort(calls_, 2);
    return *CacheClient::Create(options, &port);
  }
  void ExpectFrames(const GetStream& stream) {
    for (int i = 0; i < stream.num_objects(); ++i) {
      for (int layer = 0; layer < 4; ++layer) {
        EXPECT_TRUE(std::ranges::equal(stream.frame(i, layer), objects_[i].frame(layer)));
      }
    }
  }

  std::shared_ptr<FakeLink> link_ = std::make_shared<FakeLink>();
  std::shared_ptr<FakePairCalls> server_calls_ = std::make_shared<FakePairCalls>(link_, nullptr);
  std::shared_ptr<FakePairCalls> calls_ = std::make_shared<FakePairCalls>(link_, nullptr);
  std::unique_ptr<CacheServer> server_;
  std::vector<SealedObject> objects_;
  std::vector<ObjectKey> keys_;
};

TEST_F(NcclServiceTest, FramesComeToTheGpuByteForByte) {
  const auto client = MakeClient(Transport::kNccl);
  for (int round = 0; round < 2; ++round) {
    const auto get = client->StartDeviceGet(keys_, "");
    ASSERT_THAT(get->WaitForAll(), IsOk());
    EXPECT_TRUE(get->is_on_device(3));
    ExpectFrames(*get);
  }
  EXPECT_EQ(client->counters().nccl_gets, 2u);
  EXPECT_THAT(MakeClient(Transport::kGrpc)->Stats()->pinned_bytes, testing::Eq(0u));
}

TEST_F(NcclServiceTest, AGetToTheHostGoesOverGrpcBesideThem) {
  const auto client = MakeClient(Transport::kNccl);
  const auto get = client->Get(keys_);
  ASSERT_THAT(get, IsOk());
  EXPECT_TRUE(std::ranges::equal((*get)[2].span(), objects_[2].bytes()));
}

TEST_F(NcclServiceTest, AServersGpuThatStandsStillEndsInAFallback) {
  server_calls_->faults.hanging_begin = 1;
  const auto client = MakeClient(Transport::kAuto);
  // The first get only begins to make the pair.
  while (client->counters().nccl_fallbacks == 0) {
    const auto get = client->StartDeviceGet(keys_, "");
    ASSERT_THAT(get->WaitForAll(), IsOk());
    ExpectFrames(*get);
  }
}

TEST_F(NcclServiceTest, AServerThatEndsWaitsForNoPair) {
  const auto client = MakeClient(Transport::kNccl);
  ASSERT_THAT(client->StartDeviceGet(keys_, "")->WaitForAll(), IsOk());
  const absl::Time began = Clock::Real()->MonotonicNow();
  server_->Shutdown(kPatience);
  EXPECT_LT(Clock::Real()->MonotonicNow() - began, kPatience);
}

TEST(NcclClientTest, NcclWithoutAGpuIsRefused) {
  ClientOptions options;
  options.transport = Transport::kNccl;
  EXPECT_THAT(CacheClient::Create(options), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace pkv
