#include "client/object_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/support/sealed_object.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

std::vector<std::byte> Copy(std::span<const std::byte> bytes) {
  return {bytes.begin(), bytes.end()};
}

TEST(ObjectCheckTest, AcceptsTheHeadOfWhatWasAskedFor) {
  const SealedObject block = MakeTestBlock(1, 1);
  const auto head = ParseObjectHead(block.key(), 3, block.head());
  ASSERT_THAT(head, IsOk());
  EXPECT_EQ(head->header, block.header);
  EXPECT_EQ(head->frame_crcs.size(), block.header.num_layers);
}

TEST(ObjectCheckTest, RefusesADamagedForeignShortOrLongHead) {
  const SealedObject block = MakeTestBlock(1, 1), other = MakeTestBlock(2, 1);
  std::vector<std::byte> damaged = Copy(block.head()), longer = damaged;
  damaged[30] ^= std::byte{4};
  longer.resize(longer.size() + 1);
  const std::span<const std::byte> shorter = block.head().first(block.head().size() - 1);
  for (const std::span<const std::byte> head :
       {std::span<const std::byte>(damaged), std::span<const std::byte>(longer), shorter,
        other.head(), std::span<const std::byte>()}) {
    EXPECT_THAT(ParseObjectHead(block.key(), 3, head),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("object 3")));
  }
}

TEST(ObjectCheckTest, AFrameMustFitItsChecksumAndItsNumbersTheFormat) {
  const SealedObject window = MakeTestWindow(1, 1);
  const ObjectHead head = ParseObjectHead(window.key(), 0, window.head()).value();
  EXPECT_THAT(CheckLayerFrame(head, 0, 1, window.frame(1)), IsOk());
  std::vector<std::byte> frame = Copy(window.frame(1));
  frame[7] ^= std::byte{1};
  EXPECT_THAT(CheckLayerFrame(head, 5, 1, frame),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("object 5")));
}

TEST(ObjectCheckTest, FramesOfALayerAreCheckedTogether) {
  // 2 MB: shared among threads.
  constexpr int kObjects = 8, kTokens = 1024;
  std::vector<SealedObject> windows;
  std::vector<ObjectHead> heads;
  for (int i = 0; i < kObjects; ++i) windows.push_back(MakeTestWindow(i + 1, i, kTokens));
  for (const SealedObject& window : windows) {
    heads.push_back(ParseObjectHead(window.key(), 0, window.head()).value());
  }
  std::vector<LayerFrame> frames;
  for (int i = 0; i < kObjects; ++i) frames.push_back({&heads[i], 10 + i, windows[i].frame(1)});
  std::vector<std::byte> bad = Copy(frames[6].bytes);
  bad[7] ^= std::byte{1};
  ThreadPool pool(2);
  for (ThreadPool* threads : {static_cast<ThreadPool*>(nullptr), &pool}) {
    int damaged = -1;
    frames[3].bytes = windows[3].frame(1);
    frames[6].bytes = windows[6].frame(1);
    EXPECT_THAT(CheckLayerFrames(frames, 1, threads, &damaged), IsOk());
    EXPECT_EQ(damaged, -1);
    frames[6].bytes = bad;
    frames[3].bytes = windows[3].frame(0);
    EXPECT_THAT(CheckLayerFrames(frames, 1, threads, &damaged),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("object 13")));
    EXPECT_EQ(damaged, 13) << "the first of two";
  }
}

TEST(ObjectCheckTest, ATableMustHashToItsId) {
  const SealedObject table = MakeTestTable(1);
  const std::span<const std::byte> frames = table.bytes().subspan(table.head().size());
  EXPECT_THAT(CheckTableContent(table.header, 0, frames), IsOk());
  std::vector<std::byte> changed = Copy(frames);
  changed[0] ^= std::byte{1};
  EXPECT_THAT(CheckTableContent(table.header, 0, changed), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(CheckTableContent(MakeTestBlock(1, 1).header, 0, {}), IsOk());
}

}  // namespace
}  // namespace pkv
