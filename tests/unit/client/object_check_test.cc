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
