#include "kvstore/service/shm_stage.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "proto/transport/shm_frame.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

constexpr uint64_t kBytes = 64 << 10;

// The client's side: the descriptor, mapped for writing.
class StageWriter {
 public:
  explicit StageWriter(const ShmStage& stage) : bytes_(stage.bytes()) {
    memory_ = static_cast<char*>(
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, stage.fd(), 0));
    EXPECT_NE(memory_, MAP_FAILED);
  }
  ~StageWriter() { munmap(memory_, bytes_); }
  char* memory() const { return memory_; }

 private:
  const uint64_t bytes_;
  char* memory_ = nullptr;
};

std::string TextAt(const ShmStage& stage, uint64_t offset, uint64_t bytes) {
  std::string text(bytes, '?');
  EXPECT_THAT(stage.Read(offset, std::as_writable_bytes(std::span(text))), IsOk());
  return text;
}

TEST(ShmStageTest, ShowsWhatItsClientWrites) {
  const auto stage = ShmStage::Create(kBytes).value();
  const StageWriter writer(*stage);
  std::memcpy(writer.memory() + kBytes - 5, "hello", 5);
  EXPECT_EQ(TextAt(*stage, kBytes - 5, 5), "hello");
  EXPECT_EQ(TextAt(*stage, 0, 2), std::string(2, '\0'));
}

TEST(ShmStageTest, RefusesWhatIsNotInside) {
  const auto stage = ShmStage::Create(kBytes).value();
  std::vector<std::byte> out(kBytes + 1);
  EXPECT_THAT(stage->Read(kBytes, {}), IsOk());
  for (const auto& [offset, bytes] :
       {std::pair{kBytes, uint64_t{1}}, std::pair{uint64_t{0}, kBytes + 1},
        std::pair{~uint64_t{0}, uint64_t{1}}, std::pair{uint64_t{1}, kBytes}}) {
    EXPECT_THAT(stage->Read(offset, std::span(out).first(bytes)),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

// A client could have the server make pages that its own descriptor then keeps, stage after stage.
TEST(ShmStageTest, ReadingWhatWasNeverWrittenTakesNoMemory) {
  const auto stage = ShmStage::Create(kBytes).value();
  EXPECT_EQ(TextAt(*stage, 0, kBytes), std::string(kBytes, '\0'));
  struct stat info {};
  ASSERT_EQ(fstat(stage->fd(), &info), 0);
  EXPECT_EQ(info.st_blocks, 0);
}

// It cannot change the file's size, or what it may do leaves every byte readable.
TEST(ShmStageTest, ItsClientCannotTakeMemoryFromUnderTheReader) {
  const auto stage = ShmStage::Create(kBytes).value();
  const StageWriter writer(*stage);
  std::memset(writer.memory(), 'x', kBytes);
  EXPECT_EQ(ftruncate(stage->fd(), 0), -1);
  EXPECT_EQ(ftruncate(stage->fd(), kBytes * 2), -1);
  // Neither can it take back the right to write, under a client of its own that shares it.
  EXPECT_EQ(fcntl(stage->fd(), F_ADD_SEALS, F_SEAL_WRITE), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(TextAt(*stage, 0, kBytes), std::string(kBytes, 'x'));
  ASSERT_EQ(fallocate(stage->fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kBytes), 0);
  EXPECT_EQ(TextAt(*stage, 0, kBytes), std::string(kBytes, '\0'));
}

TEST(ShmStagesTest, FindsAStageByItsTokenUntilItIsTakenBack) {
  ShmStages stages(Clock::Real());
  const ShmStages::Lent first = stages.Lend().value();
  const ShmStages::Lent second = stages.Lend().value();
  EXPECT_EQ(first.token.size(), kShmTokenBytes);
  EXPECT_NE(first.token, second.token);
  EXPECT_EQ(stages.Find(first.token), first.stage);
  EXPECT_EQ(stages.Find(second.token), second.stage);
  EXPECT_EQ(stages.Find(""), nullptr);
  stages.TakeBack(first.token);
  EXPECT_EQ(stages.Find(first.token), nullptr);
  EXPECT_EQ(stages.Find(second.token), second.stage);
  stages.TakeBack(second.token);
}

// A client that opens connection after connection, with a put under way over each of them.
TEST(ShmStagesTest, CountsAStageUntilItsLastUserIsDone) {
  ShmStages stages(Clock::Real());
  std::vector<ShmStages::Lent> lent;
  for (int i = 0; i < kMaxShmStages; ++i) lent.push_back(stages.Lend().value());
  EXPECT_EQ(stages.bytes(), kMaxShmStages * kShmStageBytes);
  EXPECT_THAT(stages.Lend(), StatusIs(absl::StatusCode::kResourceExhausted));
  stages.TakeBack(lent.back().token);
  EXPECT_THAT(stages.Lend(), StatusIs(absl::StatusCode::kResourceExhausted)) << "a put uses it";
  lent.pop_back();
  EXPECT_EQ(stages.bytes(), (kMaxShmStages - 1) * kShmStageBytes);
  const auto again = stages.Lend();
  ASSERT_THAT(again, IsOk());
  stages.TakeBack(again->token);
  for (const ShmStages::Lent& each : lent) stages.TakeBack(each.token);
}

}  // namespace
}  // namespace pkv
