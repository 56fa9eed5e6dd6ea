// The real pkvd, killed and stopped in the middle of calls: every call ends by its deadline, with
// Unavailable or DeadlineExceeded, and the same client goes on with the server that comes back.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "pkv/client/cache_client.h"
#include "proto/base/clock.h"
#include "tests/support/child_process.h"
#include "tests/support/sealed_object.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::Lt;

constexpr absl::Duration kDeadline = absl::Seconds(20);
constexpr std::chrono::seconds kPatience{30};

MATCHER(IsAway, "") { return absl::IsUnavailable(arg) || absl::IsDeadlineExceeded(arg); }

// Frames of 1 MiB, 192 of them: far more than arrives before the test thread runs again.
SealedObject MakeLargeObject(uint64_t id) {
  ObjectHeader header = TestHeader(ObjectKind::kWindow, id, /*num_layers=*/192);
  header.num_tokens = kMaxWindowTokens;
  return SealTestObject(header, /*seed=*/1, /*random_bytes=*/4096);
}

class PkvdKillTest : public testing::Test {
 protected:
  PkvdKillTest()
      : scratch_(absl::StrCat(testing::TempDir(), "/pkvd_kill_test.", getpid())),
        bin_(std::getenv("PKV_BINARY_DIR")) {
    std::filesystem::create_directories(scratch_);
    Start("127.0.0.1:0");
    ClientOptions options;
    options.address = address_;
    options.get_deadline = options.put_deadline = kDeadline;
    options.progress_timeout = absl::Seconds(2);
    client_ = *CacheClient::Create(options);
    EXPECT_THAT(client_->Stats(), IsOk());
    began_ = Clock::Real()->MonotonicNow();
  }
  ~PkvdKillTest() override { std::filesystem::remove_all(scratch_); }

  void Start(const std::string& listen) {
    const std::string port_file = scratch_ + "/port";
    std::filesystem::remove(port_file);
    pkvd_ = std::make_unique<ChildProcess>(
        std::vector<std::string>{bin_ + "/kvstore/pkvd", "--capacity", "256MiB", "--listen", listen,
                                 "--metrics-listen", "127.0.0.1:0", "--port-file", port_file},
        scratch_ + "/pkvd");
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (!std::filesystem::exists(port_file) && std::chrono::steady_clock::now() < deadline) {
      ::poll(nullptr, 0, /*timeout_ms=*/5);
    }
    std::ifstream file(port_file);
    std::string port;
    ASSERT_TRUE(static_cast<bool>(file >> port)) << "pkvd did not start: " << pkvd_->err();
    address_ = absl::StrCat("127.0.0.1:", port);
  }

  void Kill() {
    pkvd_->Signal(SIGKILL);
    ASSERT_EQ(pkvd_->Wait(kPatience), 128 + SIGKILL);
  }

  void ExpectEndedInTime() {
    EXPECT_THAT(Clock::Real()->MonotonicNow() - began_, Lt(kDeadline + absl::Seconds(1)));
  }

  PutOutcome PutOne(const SealedObject& object) {
    const std::span<const std::byte> bytes = object.bytes();
    return client_->Put({&bytes, 1})[0];
  }

  // Same address, nothing stored, and the client needs no care.
  void ExpectEmptyAndWellAfterRestart() {
    Start(address_);
    const SealedObject object = MakeTestBlock(9, 9);
    // The first calls may find the connection still waiting to be dialled again.
    absl::StatusOr<ServerStats> stats = client_->Stats();
    for (int i = 0; i < 20 && absl::IsUnavailable(stats.status()); ++i) stats = client_->Stats();
    ASSERT_THAT(stats, IsOk());
    EXPECT_EQ(stats->num_objects, 0u);
    const ObjectKey key = object.key();
    EXPECT_THAT(client_->Get({&key, 1}), StatusIs(absl::StatusCode::kNotFound));
    EXPECT_THAT(PutOne(object).status, IsOk());
    EXPECT_THAT(client_->Get({&key, 1}), IsOk());
  }

  const std::string scratch_;
  const std::string bin_;
  std::unique_ptr<ChildProcess> pkvd_;
  std::string address_;
  std::unique_ptr<CacheClient> client_;
  absl::Time began_;
};

TEST_F(PkvdKillTest, KillDuringAPutIsUnavailable) {
  const SealedObject object = MakeLargeObject(1);
  const ObjectDescriptor descriptor = {object.key(), object.header.num_layers,
                                       object.header.frame_bytes};
  auto stream = client_->StartPut({&descriptor, 1});
  ASSERT_THAT(stream, IsOk());
  absl::Status status;
  for (int layer = 0; layer < object.header.num_layers && status.ok(); ++layer) {
    if (layer == object.header.num_layers / 2) Kill();
    const std::span<const std::byte> frame = object.frame(layer);
    status = (*stream)->WriteLayer(layer, {&frame, 1});
  }
  EXPECT_THAT(status, IsAway());
  EXPECT_THAT((*stream)->Finish()[0].status, IsAway());
  ExpectEndedInTime();
  ExpectEmptyAndWellAfterRestart();
}

TEST_F(PkvdKillTest, KillDuringAGetIsUnavailable) {
  const SealedObject object = MakeLargeObject(1);
  ASSERT_THAT(PutOne(object).status, IsOk());
  const ObjectKey key = object.key();
  const std::unique_ptr<GetStream> stream = client_->StartGet({&key, 1});
  ASSERT_THAT(stream->WaitForManifest(), IsOk());
  Kill();
  EXPECT_THAT(stream->WaitForAll(), IsAway());
  EXPECT_LT(stream->received_bytes(), object.bytes().size() - object.head().size());
  ExpectEndedInTime();
  ExpectEmptyAndWellAfterRestart();
}

TEST_F(PkvdKillTest, GetGoesOnWithAServerThatComesBackWithTheSameObject) {
  const SealedObject object = MakeLargeObject(1);
  ASSERT_THAT(PutOne(object).status, IsOk());
  const ObjectKey key = object.key();
  const std::unique_ptr<GetStream> stream = client_->StartGet({&key, 1});
  ASSERT_THAT(stream->WaitForLayer(0), IsOk());
  Kill();
  Start(address_);
  ClientOptions options;
  options.address = address_;
  const std::span<const std::byte> bytes = object.bytes();
  EXPECT_THAT((*CacheClient::Create(options))->Put({&bytes, 1})[0].status, IsOk());
  ASSERT_THAT(stream->WaitForAll(), IsOk());
  const AlignedBuffer got = stream->TakeObject(0);
  ASSERT_EQ(got.size(), bytes.size());
  EXPECT_EQ(std::memcmp(got.data(), bytes.data(), got.size()), 0);
  EXPECT_GE(client_->counters().retries, 1u);
}

TEST_F(PkvdKillTest, ServerThatStandsStillEndsAGetAfterTheProgressTimeout) {
  const SealedObject object = MakeLargeObject(1);
  ASSERT_THAT(PutOne(object).status, IsOk());
  pkvd_->Signal(SIGSTOP);
  const ObjectKey key = object.key();
  EXPECT_THAT(client_->Get({&key, 1}), StatusIs(absl::StatusCode::kDeadlineExceeded));
  ExpectEndedInTime();
  pkvd_->Signal(SIGCONT);
  EXPECT_THAT(client_->Get({&key, 1}), IsOk());
}

TEST_F(PkvdKillTest, ExamplesRun) {
  for (const std::string name : {"put_get", "layer_stream"}) {
    // The second time the same bytes are stored already.
    for (int round = 0; round < 2; ++round) {
      ChildProcess example({bin_ + "/client/" + name, address_}, scratch_ + "/" + name);
      EXPECT_EQ(example.Wait(kPatience), 0) << name << ": " << example.err();
      EXPECT_THAT(example.out(), testing::HasSubstr("equal"));
    }
  }
}

}  // namespace
}  // namespace pkv
