// The same-host transport between real processes: the same bytes as over gRPC or none, pins end
// with whoever held them, and nobody hangs when the other side is killed, stopped or restarted.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "pkv/client/cache_client.h"
#include "proto/base/clock.h"
#include "tests/support/arena_memory.h"
#include "tests/support/child_process.h"
#include "tests/support/sealed_object.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;
using ::testing::Lt;

constexpr absl::Duration kDeadline = absl::Seconds(20);
constexpr std::chrono::seconds kPatience{60};
constexpr int kNumLayers = 8;

MATCHER(IsAway, "") { return absl::IsUnavailable(arg) || absl::IsDeadlineExceeded(arg); }

// Frames of 1 MiB.
SealedObject MakeLargeObject(uint64_t id) {
  ObjectHeader header = TestHeader(ObjectKind::kWindow, id, kNumLayers);
  header.num_tokens = kMaxWindowTokens;
  return SealTestObject(header, static_cast<uint32_t>(id), /*random_bytes=*/4096);
}

class ShmTransportTest : public testing::Test {
 protected:
  ShmTransportTest()
      : scratch_(absl::StrCat("/tmp/pkv_shm_transport.", getpid())),
        bin_(std::getenv("PKV_BINARY_DIR")) {
    std::filesystem::create_directories(scratch_);
  }
  // gRPC ends its threads with its last channel, which may take them ten seconds, and is waited for
  // by the next. This channel is the last, and never used.
  static void SetUpTestSuite() {
    static const std::unique_ptr<CacheClient> keeper = *CacheClient::Create(ClientOptions());
  }
  ~ShmTransportTest() override { std::filesystem::remove_all(scratch_); }

  void Start(std::vector<std::string> more = {}) { StartAt("127.0.0.1:0", std::move(more)); }
  void StartAt(const std::string& listen, std::vector<std::string> more = {}) {
    const std::string port_file = scratch_ + "/port";
    std::filesystem::remove(port_file);
    std::vector<std::string> arguments = {
        bin_ + "/kvstore/pkvd", "--capacity",  "64MiB",       "--listen", listen,
        "--metrics-listen",     "127.0.0.1:0", "--port-file", port_file};
    if (with_socket_) {
      arguments.insert(arguments.end(), {"--shm-socket", scratch_ + "/shm.sock"});
    }
    arguments.insert(arguments.end(), more.begin(), more.end());
    pkvd_ = std::make_unique<ChildProcess>(arguments, scratch_ + "/pkvd");
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (!std::filesystem::exists(port_file) && std::chrono::steady_clock::now() < deadline) {
      ::poll(nullptr, 0, /*timeout_ms=*/5);
    }
    std::ifstream file(port_file);
    std::string port;
    ASSERT_TRUE(static_cast<bool>(file >> port >> metrics_port_)) << pkvd_->err();
    address_ = absl::StrCat("127.0.0.1:", port);
    grpc_ = MakeClient(Transport::kGrpc);
  }
  // A signal to stop is obeyed by every thread in its own time.
  void Stop() {
    pkvd_->Signal(SIGSTOP);
    const std::string tasks = absl::StrCat("/proc/", pkvd_->pid(), "/task");
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    for (bool runs = true; runs && std::chrono::steady_clock::now() < deadline;) {
      runs = false;
      for (const auto& task : std::filesystem::directory_iterator(tasks)) {
        const std::string stat = ChildProcess::Read(task.path().string() + "/stat");
        runs |= stat.find(") T ") == std::string::npos;
      }
    }
  }
  void Kill() {
    pkvd_->Signal(SIGKILL);
    ASSERT_EQ(pkvd_->Wait(kPatience), 128 + SIGKILL);
  }

  std::unique_ptr<CacheClient> MakeClient(Transport transport) {
    ClientOptions options;
    options.address = address_;
    options.transport = transport;
    options.get_deadline = options.put_deadline = kDeadline;
    options.progress_timeout = absl::Seconds(2);
    return *CacheClient::Create(options);
  }

  PutOutcome Put(const SealedObject& object) {
    const std::span<const std::byte> bytes = object.bytes();
    return grpc_->Put({&bytes, 1})[0];
  }
  absl::Status GetStatus(CacheClient& client, const SealedObject& object) {
    const ObjectKey key = object.key();
    return client.Get({&key, 1}).status();
  }
  void ExpectServes(CacheClient& client, const SealedObject& object) {
    const ObjectKey key = object.key();
    const auto got = client.Get({&key, 1});
    ASSERT_THAT(got, IsOk());
    EXPECT_TRUE(std::ranges::equal((*got)[0].span(), object.bytes()));
  }

  // What the server's threads do in their own time: asks until it has come to it.
  template <typename ConditionT>
  bool Eventually(const ConditionT& condition) {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (std::chrono::steady_clock::now() < deadline) {
      if (condition()) return true;
    }
    return false;
  }
  bool EventuallyPinned(bool something) {
    return Eventually([&] {
      const auto stats = grpc_->Stats();
      return stats.ok() && (stats->pinned_bytes > 0) == something;
    });
  }
  // Likewise, of what puts have reserved.
  bool EventuallyReserved(bool something) {
    return Eventually([&] {
      const auto stats = grpc_->Stats();
      return stats.ok() && (stats->reserved_bytes > 0) == something;
    });
  }
  bool EventuallyNothingStaged() {
    return Eventually([&] { return Metric("pkv_shm_stage_bytes") == 0; });
  }

  // Those of this process, which does not know.
  void EndShmConnections() {
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      const int fd = std::stoi(entry.path().filename());
      sockaddr_un peer{};
      socklen_t size = sizeof(peer);
      if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) == 0 &&
          peer.sun_family == AF_UNIX && scratch_ + "/shm.sock" == peer.sun_path) {
        shutdown(fd, SHUT_RDWR);
      }
    }
  }

  std::unique_ptr<ChildProcess> StartHolder(uint64_t id, const std::string& call = "get") {
    auto holder = std::make_unique<ChildProcess>(
        std::vector<std::string>{bin_ + "/tests/integration/shm_holder", call, address_,
                                 std::to_string(id), std::to_string(kNumLayers)},
        scratch_ + "/holder");
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (holder->out().empty() && std::chrono::steady_clock::now() < deadline) {
      ::poll(nullptr, 0, /*timeout_ms=*/5);
    }
    EXPECT_EQ(holder->out(), "holding\n") << holder->err();
    return holder;
  }

  double Metric(const std::string& series) {
    const std::string url = absl::StrCat("http://127.0.0.1:", metrics_port_, "/metrics");
    ChildProcess curl({"/usr/bin/curl", "-fsS", url}, scratch_ + "/curl");
    EXPECT_EQ(curl.Wait(kPatience), 0) << curl.err();
    std::istringstream lines(curl.out());
    for (std::string line; std::getline(lines, line);) {
      if (line.rfind(series + " ", 0) == 0) return std::stod(line.substr(series.size() + 1));
    }
    return -1;
  }

  const std::string scratch_;
  const std::string bin_;
  bool with_socket_ = true;
  std::unique_ptr<ChildProcess> pkvd_;
  std::string address_, metrics_port_;
  std::unique_ptr<CacheClient> grpc_;
};

TEST_F(ShmTransportTest, BringsTheBytesThatGrpcBrings) {
  Start();
  const SealedObject table = MakeTestTable(1);
  const SealedObject block = MakeTestBlock(2, 2, table.header.id);
  const SealedObject window = MakeTestWindow(3, 3, /*num_tokens=*/77, /*num_layers=*/5);
  std::vector<ObjectKey> keys;
  uint64_t frame_bytes = 0;
  for (const SealedObject* object : {&table, &block, &window}) {
    ASSERT_THAT(Put(*object).status, IsOk());
    keys.push_back(object->key());
    frame_bytes += object->bytes().size() - object->head().size();
  }
  const auto expected = grpc_->Get(keys);
  ASSERT_THAT(expected, IsOk());
  for (const Transport transport : {Transport::kAuto, Transport::kShm}) {
    const auto client = MakeClient(transport);
    const auto got = client->Get(keys);
    ASSERT_THAT(got, IsOk());
    for (size_t i = 0; i < keys.size(); ++i) {
      EXPECT_TRUE(std::ranges::equal((*got)[i].span(), (*expected)[i].span()));
    }
    EXPECT_EQ(client->counters().shm_gets, 1u);
    EXPECT_EQ(client->counters().shm_get_bytes, frame_bytes);
  }
  EXPECT_TRUE(EventuallyPinned(false));
  EXPECT_EQ(Metric("pkv_payload_bytes_total{direction=\"out\",transport=\"shm\"}"),
            2 * frame_bytes);
  EXPECT_EQ(Metric("pkv_payload_bytes_total{direction=\"out\",transport=\"grpc\"}"), frame_bytes);
}

TEST_F(ShmTransportTest, AKilledClientsPinsEnd) {
  Start();
  ASSERT_THAT(Put(MakeLargeObject(1)).status, IsOk());
  const auto holder = StartHolder(1);
  EXPECT_TRUE(EventuallyPinned(true));
  holder->Signal(SIGKILL);
  EXPECT_EQ(holder->Wait(kPatience), 128 + SIGKILL);
  EXPECT_TRUE(EventuallyPinned(false));
}

// A client that gives no sign of life loses its pins, and learns of it when it lives again.
TEST_F(ShmTransportTest, AStoppedClientLosesItsPinsAndIsTold) {
  Start({"--shm-silence", "300ms"});
  ASSERT_THAT(Put(MakeLargeObject(1)).status, IsOk());
  const auto holder = StartHolder(1);
  EXPECT_TRUE(EventuallyPinned(true));
  holder->Signal(SIGSTOP);
  EXPECT_TRUE(EventuallyPinned(false));
  holder->Signal(SIGCONT);
  EXPECT_EQ(holder->Wait(kPatience), 3) << holder->err();
  EXPECT_THAT(holder->out(), HasSubstr("lost: ABORTED"));
}

TEST_F(ShmTransportTest, PinsEndAtTheirAgeHoweverLiveTheClient) {
  Start({"--shm-silence", "300ms", "--shm-pin-age", "600ms"});
  ASSERT_THAT(Put(MakeLargeObject(1)).status, IsOk());
  const auto holder = StartHolder(1);
  EXPECT_EQ(holder->Wait(kPatience), 3) << holder->err();
  EXPECT_TRUE(EventuallyPinned(false));
}

TEST_F(ShmTransportTest, BytesInUseStayUnderEvictionAndDeletion) {
  Start();
  const SealedObject held = MakeLargeObject(1);
  ASSERT_THAT(Put(held).status, IsOk());
  const auto client = MakeClient(Transport::kShm);
  const ObjectKey key = held.key();
  const auto stream = client->StartGet({&key, 1});
  ASSERT_THAT(stream->WaitForAll(), IsOk());
  EXPECT_EQ(grpc_->Delete({&key, 1}).value_or(0), 1);
  // Three times what the memory holds.
  for (uint64_t id = 2; id < 2 + 24; ++id) ASSERT_THAT(Put(MakeLargeObject(id)).status, IsOk());
  EXPECT_GT(grpc_->Stats()->num_evictions, 0u);
  for (int layer = 0; layer < kNumLayers; ++layer) {
    EXPECT_TRUE(std::ranges::equal(stream->frame(0, layer), held.frame(layer)));
  }
  EXPECT_THAT(stream->CheckHeld(), IsOk());
}

TEST_F(ShmTransportTest, AFlippedBitIsDataLossAndTheObjectIsDropped) {
  Start();
  const SealedObject object = MakeLargeObject(1);
  ASSERT_THAT(Put(object).status, IsOk());
  const std::span<const std::byte> frame = object.frame(kNumLayers - 1);
  ASSERT_TRUE(ArenaMemory(pkvd_->pid())
                  .FlipBit({reinterpret_cast<const char*>(frame.data()), 4096}, /*offset=*/5000));
  const auto client = MakeClient(Transport::kAuto);
  EXPECT_THAT(GetStatus(*client, object), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(client->counters().shm_gets, 1u);
  EXPECT_EQ(client->counters().integrity_failures, 1u);
  // The server looked for itself, on a thread of its own.
  absl::Status again = GetStatus(*client, object);
  for (int i = 0; i < 1000 && absl::IsDataLoss(again); ++i) again = GetStatus(*client, object);
  EXPECT_THAT(again, StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(Metric("pkv_integrity_failures_total{stage=\"dram\"}"), 1);
  ASSERT_THAT(Put(object).status, IsOk());
  ExpectServes(*client, object);
}

// Nobody is left who could change the bytes: the get that has them goes on, the next one fails.
TEST_F(ShmTransportTest, KillOfTheServerDuringAGetLosesNothingAndTheNextIsUnavailable) {
  Start();
  const SealedObject object = MakeLargeObject(1);
  ASSERT_THAT(Put(object).status, IsOk());
  const auto client = MakeClient(Transport::kAuto);
  const ObjectKey key = object.key();
  const auto stream = client->StartGet({&key, 1});
  ASSERT_THAT(stream->WaitForLayer(0), IsOk());
  Kill();
  EXPECT_THAT(stream->WaitForAll(), IsOk());
  for (int layer = 0; layer < kNumLayers; ++layer) {
    EXPECT_TRUE(std::ranges::equal(stream->frame(0, layer), object.frame(layer)));
  }
  EXPECT_THAT(stream->CheckHeld(), IsOk());
  for (const Transport transport : {Transport::kAuto, Transport::kShm}) {
    const absl::Time began = Clock::Real()->MonotonicNow();
    EXPECT_THAT(GetStatus(*MakeClient(transport), object), IsAway());
    EXPECT_THAT(Clock::Real()->MonotonicNow() - began, Lt(kDeadline + absl::Seconds(1)));
  }
  EXPECT_THAT(GetStatus(*client, object), IsAway());
}

TEST_F(ShmTransportTest, AServerThatStandsStillEndsAGetInTime) {
  Start();
  const SealedObject object = MakeLargeObject(1);
  ASSERT_THAT(Put(object).status, IsOk());
  const auto client = MakeClient(Transport::kAuto);
  ExpectServes(*client, object);
  Stop();
  const absl::Time began = Clock::Real()->MonotonicNow();
  EXPECT_THAT(GetStatus(*client, object), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(Clock::Real()->MonotonicNow() - began, Lt(kDeadline + absl::Seconds(1)));
  pkvd_->Signal(SIGCONT);
  ExpectServes(*client, object);
}

TEST_F(ShmTransportTest, AServerThatComesBackIsReadInPlaceAgain) {
  Start();
  const SealedObject object = MakeLargeObject(1);
  ASSERT_THAT(Put(object).status, IsOk());
  const auto client = MakeClient(Transport::kAuto);
  ExpectServes(*client, object);
  Kill();
  // Its socket file is left behind, and nobody listens there.
  StartAt(address_);
  ASSERT_THAT(Put(object).status, IsOk());
  absl::Status status;
  const absl::Time deadline = Clock::Real()->MonotonicNow() + absl::Minutes(1);
  while (client->counters().shm_gets < 2 && Clock::Real()->MonotonicNow() < deadline) {
    status = GetStatus(*client, object);
  }
  EXPECT_THAT(status, IsOk());
  EXPECT_EQ(client->counters().shm_gets, 2u);
}

TEST_F(ShmTransportTest, BeyondTheLimitOfAConnectionGetsGoOverGrpc) {
  Start({"--shm-max-pinned", "12MiB"});
  const SealedObject first = MakeLargeObject(1), second = MakeLargeObject(2);
  ASSERT_THAT(Put(first).status, IsOk());
  ASSERT_THAT(Put(second).status, IsOk());
  const auto client = MakeClient(Transport::kAuto);
  const ObjectKey key = first.key();
  const auto stream = client->StartGet({&key, 1});
  ASSERT_THAT(stream->WaitForAll(), IsOk());
  ExpectServes(*client, second);
  EXPECT_EQ(client->counters().shm_gets, 1u);
  EXPECT_EQ(client->counters().shm_fallbacks, 1u);
}

TEST_F(ShmTransportTest, AServerWithoutASocketServesAutoOverGrpcAndRefusesShm) {
  with_socket_ = false;
  Start();
  const SealedObject object = MakeLargeObject(1);
  ASSERT_THAT(Put(object).status, IsOk());
  const auto client = MakeClient(Transport::kAuto);
  ExpectServes(*client, object);
  EXPECT_EQ(client->counters().shm_gets, 0u);
  EXPECT_THAT(GetStatus(*MakeClient(Transport::kShm), object),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("no shm socket")));
}

TEST_F(ShmTransportTest, PutsStoreTheBytesThatGrpcStores) {
  Start();
  uint64_t id = 0, frame_bytes = 0;
  for (const Transport transport : {Transport::kAuto, Transport::kShm}) {
    const SealedObject table = MakeTestTable(++id);
    const SealedObject block = MakeTestBlock(++id, 2, table.header.id);
    const SealedObject large = MakeLargeObject(++id);
    const auto client = MakeClient(transport);
    uint64_t put_bytes = 0;
    for (const SealedObject* object : {&table, &block, &large}) {
      const std::span<const std::byte> bytes = object->bytes();
      const PutOutcome outcome = client->Put({&bytes, 1})[0];
      EXPECT_TRUE(outcome.stored) << outcome.status;
      ExpectServes(*grpc_, *object);
      put_bytes += object->bytes().size() - object->head().size();
    }
    EXPECT_EQ(client->counters().shm_puts, 3u);
    EXPECT_EQ(client->counters().shm_put_bytes, put_bytes);
    EXPECT_EQ(client->counters().put_bytes, put_bytes);
    EXPECT_EQ(client->counters().shm_put_fallbacks, 0u);
    frame_bytes += put_bytes;
  }
  EXPECT_EQ(Metric("pkv_payload_bytes_total{direction=\"in\",transport=\"shm\"}"), frame_bytes);
  EXPECT_EQ(Metric("pkv_payload_bytes_total{direction=\"in\",transport=\"grpc\"}"), 0);
}

TEST_F(ShmTransportTest, AClientKilledInAPutGivesBackWhatWasReservedAndItsStage) {
  Start();
  const auto holder = StartHolder(1, "put");
  EXPECT_TRUE(EventuallyReserved(true));
  EXPECT_TRUE(Eventually(
      [&] { return Metric("pkv_payload_bytes_total{direction=\"in\",transport=\"shm\"}") > 0; }));
  holder->Signal(SIGKILL);
  EXPECT_EQ(holder->Wait(kPatience), 128 + SIGKILL);
  EXPECT_TRUE(EventuallyReserved(false));
  EXPECT_TRUE(EventuallyNothingStaged());
  EXPECT_EQ(Metric("pkv_block_puts_total{result=\"abandoned\"}"), 1);
  ASSERT_THAT(Put(MakeLargeObject(1)).status, IsOk());
}

// Its sockets stand, and nothing moves on them.
TEST_F(ShmTransportTest, AClientStoppedInAPutLosesWhatWasReservedAndItsStage) {
  Start({"--stall-timeout", "1s", "--shm-silence", "1s"});
  const auto holder = StartHolder(1, "put");
  holder->Signal(SIGSTOP);
  EXPECT_TRUE(EventuallyReserved(false));
  EXPECT_TRUE(EventuallyNothingStaged());
  EXPECT_EQ(Metric("pkv_rpc_rejected_total{reason=\"stalled\"}"), 1);
  ASSERT_THAT(Put(MakeLargeObject(1)).status, IsOk());
}

TEST_F(ShmTransportTest, PutsBeyondThoseOfAStageGoOverGrpc) {
  Start();
  uint64_t id = 0;
  for (const Transport transport : {Transport::kAuto, Transport::kShm}) {
    const auto client = MakeClient(transport);
    std::vector<SealedObject> objects;
    std::vector<std::unique_ptr<PutStream>> streams;
    for (int i = 0; i < 5; ++i) {
      objects.push_back(MakeLargeObject(++id));
      const ObjectDescriptor descriptor = {objects.back().key(), kNumLayers,
                                           objects.back().header.frame_bytes};
      auto stream = client->StartPut({&descriptor, 1});
      ASSERT_THAT(stream, IsOk());
      streams.push_back(*std::move(stream));
    }
    EXPECT_EQ(client->counters().shm_puts, 4u);
    EXPECT_EQ(client->counters().shm_put_fallbacks, 1u);
    for (int layer = 0; layer < kNumLayers; ++layer) {
      for (size_t i = 0; i < streams.size(); ++i) {
        const std::span<const std::byte> frame = objects[i].frame(layer);
        ASSERT_THAT(streams[i]->WriteLayer(layer, {&frame, 1}), IsOk());
      }
    }
    for (size_t i = 0; i < streams.size(); ++i) {
      EXPECT_THAT(streams[i]->Commit(0, objects[i].head()), IsOk());
      EXPECT_THAT(streams[i]->Finish()[0].status, IsOk());
      ExpectServes(*grpc_, objects[i]);
    }
  }
}

// The put does not depend on the connection that its stage was lent over, and the next has another.
TEST_F(ShmTransportTest, APutGoesOnWhenItsConnectionEnds) {
  Start();
  const auto client = MakeClient(Transport::kShm);
  const SealedObject object = MakeLargeObject(1);
  const ObjectDescriptor descriptor = {object.key(), kNumLayers, object.header.frame_bytes};
  auto stream = client->StartPut({&descriptor, 1});
  ASSERT_THAT(stream, IsOk());
  for (int layer = 0; layer < kNumLayers; ++layer) {
    if (layer == kNumLayers / 2) {
      EndShmConnections();
      EXPECT_TRUE(Eventually([&] { return Metric("pkv_shm_connections") == 0; }));
    }
    const std::span<const std::byte> frame = object.frame(layer);
    ASSERT_THAT((*stream)->WriteLayer(layer, {&frame, 1}), IsOk());
  }
  EXPECT_THAT((*stream)->Commit(0, object.head()), IsOk());
  EXPECT_THAT((*stream)->Finish()[0].status, IsOk());
  EXPECT_TRUE(EventuallyNothingStaged());
  ExpectServes(*grpc_, object);
  const SealedObject next = MakeLargeObject(2);
  const std::span<const std::byte> bytes = next.bytes();
  EXPECT_THAT(client->Put({&bytes, 1})[0].status, IsOk());
  EXPECT_EQ(client->counters().shm_puts, 2u);
}

// Whatever the server still reads of a cancelled put is not what the next one writes.
TEST_F(ShmTransportTest, PutsThatAreCancelledHarmNoneOfTheNext) {
  Start();
  const auto client = MakeClient(Transport::kShm);
  for (uint64_t id = 1; id <= 6; ++id) {
    const SealedObject object = MakeLargeObject(id);
    const ObjectDescriptor descriptor = {object.key(), kNumLayers, object.header.frame_bytes};
    auto stream = client->StartPut({&descriptor, 1});
    ASSERT_THAT(stream, IsOk());
    for (int layer = 0; layer < kNumLayers; ++layer) {
      const std::span<const std::byte> frame = object.frame(layer);
      ASSERT_THAT((*stream)->WriteLayer(layer, {&frame, 1}), IsOk());
    }
    if (id % 3 != 0) {
      (*stream)->Cancel();
      continue;
    }
    EXPECT_THAT((*stream)->Commit(0, object.head()), IsOk());
    EXPECT_THAT((*stream)->Finish()[0].status, IsOk());
    ExpectServes(*grpc_, object);
  }
  EXPECT_EQ(client->counters().shm_puts, 6u);
}

TEST_F(ShmTransportTest, KillOfTheServerEndsAPutInTimeAndTheNextServerTakesThemOverShmAgain) {
  Start();
  const auto client = MakeClient(Transport::kAuto);
  const SealedObject object = MakeLargeObject(1);
  const ObjectDescriptor descriptor = {object.key(), kNumLayers, object.header.frame_bytes};
  const auto stream = client->StartPut({&descriptor, 1});
  ASSERT_THAT(stream, IsOk());
  Kill();
  absl::Status written;
  for (int layer = 0; layer < kNumLayers && written.ok(); ++layer) {
    const std::span<const std::byte> frame = object.frame(layer);
    written = (*stream)->WriteLayer(layer, {&frame, 1});
  }
  EXPECT_THAT(written, IsAway());
  EXPECT_THAT((*stream)->Finish()[0].status, IsAway());
  StartAt(address_);
  const std::span<const std::byte> bytes = object.bytes();
  const absl::Time deadline = Clock::Real()->MonotonicNow() + absl::Minutes(1);
  while (client->counters().shm_puts < 2 && Clock::Real()->MonotonicNow() < deadline) {
    const ObjectKey key = object.key();
    ASSERT_THAT(grpc_->Delete({&key, 1}).status(), IsOk());
    client->Put({&bytes, 1});
  }
  EXPECT_EQ(client->counters().shm_puts, 2u);
  ExpectServes(*grpc_, object);
}

TEST_F(ShmTransportTest, AServerWithoutASocketTakesPutsOfAutoOverGrpcAndRefusesShm) {
  with_socket_ = false;
  Start();
  const SealedObject object = MakeLargeObject(1);
  const std::span<const std::byte> bytes = object.bytes();
  EXPECT_THAT(MakeClient(Transport::kShm)->Put({&bytes, 1})[0].status,
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("no shm socket")));
  const auto client = MakeClient(Transport::kAuto);
  EXPECT_THAT(client->Put({&bytes, 1})[0].status, IsOk());
  EXPECT_EQ(client->counters().shm_puts + client->counters().shm_put_fallbacks, 0u);
}

TEST_F(ShmTransportTest, TheServerStopsCleanlyUnderAHeldPin) {
  Start();
  ASSERT_THAT(Put(MakeLargeObject(1)).status, IsOk());
  const auto holder = StartHolder(1);
  pkvd_->Signal(SIGTERM);
  EXPECT_EQ(pkvd_->Wait(kPatience), 0) << pkvd_->err();
  // The holder reads on: nobody is left who could change what it holds.
  EXPECT_EQ(holder->Wait(std::chrono::seconds(1)), -1) << holder->out();
}

}  // namespace
}  // namespace pkv
