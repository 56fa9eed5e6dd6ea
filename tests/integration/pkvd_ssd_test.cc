// The real pkvd with a folder on disk: more is put than memory holds, and all of it comes back
// equal; after SIGTERM, after a kill, and with a bit flipped in a file.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "pkv/client/cache_client.h"
#include "tests/support/child_process.h"
#include "tests/support/run_binary.h"
#include "tests/support/scratch_folder.h"
#include "tests/support/sealed_object.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::Ge;
using ::testing::HasSubstr;

constexpr std::chrono::seconds kPatience{30};
constexpr int kNumBlocks = 96;  // of 256 KiB and more; memory has 8 MiB

class PkvdSsdTest : public testing::Test {
 protected:
  void SetUp() override {
    table_ = MakeTestTable(1, kLayers);
    for (int i = 0; i < kNumBlocks; ++i) {
      blocks_.push_back(
          MakeTestBlock(100 + i, static_cast<uint32_t>(i), table_.header.id, kLayers));
      keys_.push_back(blocks_.back().key());
    }
    Start();
  }

  void Start() {
    const std::string port_file = scratch_.path() + "/port";
    std::filesystem::remove(port_file);
    pkvd_ = std::make_unique<ChildProcess>(
        std::vector<std::string>{BinaryPath("kvstore/pkvd"), "--capacity", "8MiB", "--listen",
                                 "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--port-file",
                                 port_file, "--ssd-dir", Folder(), "--ssd-capacity", "256MiB"},
        scratch_.path() + "/pkvd");
    WaitForFile(port_file);
    std::ifstream file(port_file);
    std::string port;
    ASSERT_TRUE(static_cast<bool>(file >> port)) << "pkvd did not start: " << pkvd_->err();
    ClientOptions options;
    options.address = absl::StrCat("127.0.0.1:", port);
    client_ = *CacheClient::Create(options);
  }
  void End(int signal, int exit_code) {
    client_.reset();
    pkvd_->Signal(signal);
    ASSERT_EQ(pkvd_->Wait(kPatience), exit_code) << pkvd_->err();
  }
  std::string Folder() const { return scratch_.path() + "/ssd"; }

  absl::Status PutOne(const SealedObject& object) {
    const std::span<const std::byte> bytes = object.bytes();
    return client_->Put({&bytes, 1})[0].status;
  }
  // One after the other, so that memory holds a few at a time. What puts outran the disk for is
  // put again.
  void PutAll() {
    ASSERT_THAT(PutOne(table_), IsOk());
    for (const SealedObject& block : blocks_) {
      ASSERT_THAT(PutOne(block), IsOk());
      AwaitRoom();
    }
  }
  // Until the demoter has caught up: puts never wait for it.
  void AwaitRoom() {
    for (;;) {
      const absl::StatusOr<ServerStats> stats = client_->Stats();
      ASSERT_THAT(stats, IsOk());
      if (stats->resident_bytes <= stats->capacity_bytes / 10 * 9) return;
    }
  }
  // The number of blocks that come back; none with other bytes.
  int CountHits() {
    int num_hits = 0;
    for (size_t i = 0; i < keys_.size(); ++i) {
      // What comes takes no room of what is not on disk yet: it would be a miss.
      AwaitRoom();
      const auto got = client_->Get({&keys_[i], 1});
      if (!got.ok()) {
        EXPECT_THAT(got, StatusIs(absl::StatusCode::kNotFound));
        continue;
      }
      EXPECT_TRUE(std::ranges::equal((*got)[0].span(), blocks_[i].bytes())) << i;
      ++num_hits;
    }
    return num_hits;
  }

  static constexpr int kLayers = 48;
  ScratchFolder scratch_;
  std::unique_ptr<ChildProcess> pkvd_;
  std::unique_ptr<CacheClient> client_;
  SealedObject table_;
  std::vector<SealedObject> blocks_;
  std::vector<ObjectKey> keys_;
};

TEST_F(PkvdSsdTest, GivesBackMoreThanMemoryHolds) {
  ASSERT_NO_FATAL_FAILURE(PutAll());
  const ServerStats stats = client_->Stats().value();
  EXPECT_GT(stats.ssd_objects, uint64_t{kNumBlocks / 2});
  EXPECT_EQ(stats.num_evictions, 0u);
  std::vector<Digest> ids;
  const Variant variants[] = {blocks_[0].header.variant()};
  for (const SealedObject& block : blocks_) ids.push_back(block.header.id);
  const LookupResult found = client_->Lookup(ids, variants).value();
  EXPECT_EQ(found.num_blocks, kNumBlocks);
  EXPECT_GT(found.ssd_bytes, found.bytes / 2);
  EXPECT_EQ(CountHits(), kNumBlocks);
}

TEST_F(PkvdSsdTest, IsWarmAfterItWasStopped) {
  ASSERT_NO_FATAL_FAILURE(PutAll());
  ASSERT_NO_FATAL_FAILURE(End(SIGTERM, 0));
  ASSERT_NO_FATAL_FAILURE(Start());
  EXPECT_EQ(CountHits(), kNumBlocks);
}

TEST_F(PkvdSsdTest, KeepsWhatWasWrittenWhenItIsKilled) {
  ASSERT_NO_FATAL_FAILURE(PutAll());
  const uint64_t num_on_disk = client_->Stats()->ssd_objects;
  ASSERT_NO_FATAL_FAILURE(End(SIGKILL, 128 + SIGKILL));
  ASSERT_NO_FATAL_FAILURE(Start());
  // The process died, not the machine: what it had written is there, the table among it.
  EXPECT_THAT(CountHits(), Ge(static_cast<int>(num_on_disk) - 1));
}

TEST_F(PkvdSsdTest, ServesNothingThatRottedOnDisk) {
  ASSERT_NO_FATAL_FAILURE(PutAll());
  ASSERT_NO_FATAL_FAILURE(End(SIGTERM, 0));
  // One bit in the middle of the bytes of one block.
  const std::span<const std::byte> frame = blocks_[7].frame(kLayers / 2).first(64);
  const std::string wanted(reinterpret_cast<const char*>(frame.data()), frame.size());
  int num_flipped = 0;
  for (const auto& entry : std::filesystem::directory_iterator(Folder())) {
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    for (size_t at = bytes.find(wanted); at != std::string::npos; at = bytes.find(wanted, at + 1)) {
      file.clear();
      file.seekp(static_cast<std::streamoff>(at));
      file.put(static_cast<char>(bytes[at] ^ 1));
      ++num_flipped;
    }
  }
  ASSERT_GE(num_flipped, 1);
  ASSERT_NO_FATAL_FAILURE(Start());
  EXPECT_THAT(client_->Get({&keys_[7], 1}), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(CountHits(), kNumBlocks - 1);
  // It is gone for good, and can be put again.
  EXPECT_THAT(PutOne(blocks_[7]), IsOk());
  EXPECT_EQ(CountHits(), kNumBlocks);
}

TEST_F(PkvdSsdTest, RefusesAFolderThatAnotherPkvdHolds) {
  const BinaryRun second =
      RunBinary("kvstore/pkvd", {"--listen", "127.0.0.1:0", "--metrics-listen", "", "--ssd-dir",
                                 Folder(), "--ssd-capacity", "256MiB"});
  EXPECT_EQ(second.exit_code, 1);
  EXPECT_THAT(second.err, HasSubstr("in use by another process"));
}

}  // namespace
}  // namespace pkv
