#include "proto/transport/nccl/frame_rules.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "pkv/block/object_view.h"
#include "tests/support/sealed_object.h"

namespace pkv {
namespace {

// The rules say what CheckFrameNumbers says: of sound frames, and of frames in which some bytes
// were overwritten at random, so that each section of each kind is hit many times.
class FrameRulesTest : public testing::TestWithParam<int> {
 protected:
  static ObjectHeader HeaderOf(int kind) {
    switch (kind) {
      case 0:
        return MakeTestWindow(2, 1, 5).header;
      case 1:
        return MakeTestTable(1).header;
      case 2:
        return MakeTestBlock(2, 1).header;
      case 3:
        return MakeTestBlock(2, 1, TestDigest(9)).header;
      default: {
        ObjectHeader header = MakeTestBlock(2, 1, TestDigest(9)).header;
        header.flags |= kFlagAppendsK | kFlagAppendsV;
        header.num_sinks = 16;
        header.num_kv_heads = 3;
        return ObjectBuilder::Make(header)->header();
      }
    }
  }
  static bool BreaksRules(const FrameRules& rules, const std::vector<std::byte>& frame) {
    std::vector<CheckItem> items;
    AppendCheckItems(frame.data(), rules, 0, 0, items);
    uint32_t flag = 0;
    CheckOnCpu(items, {&rules, 1}, {&flag, 1});
    return flag != 0;
  }
};

TEST_P(FrameRulesTest, AgreeWithCheckFrameNumbers) {
  const ObjectHeader header = HeaderOf(GetParam());
  const FrameRules rules = FrameRules::Of(header);
  std::vector<std::byte> sound(header.frame_bytes);
  EXPECT_FALSE(BreaksRules(rules, sound));
  constexpr uint32_t kSeed = 7;
  std::mt19937 random(kSeed);
  int num_bad = 0;
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::byte> frame = sound;
    const size_t at = random() % (frame.size() / 2) * 2;
    const auto value = static_cast<uint16_t>(random());
    std::memcpy(frame.data() + at, &value, sizeof(value));
    const bool is_bad = !CheckFrameNumbers(header, 0, frame).ok();
    num_bad += is_bad;
    ASSERT_EQ(BreaksRules(rules, frame), is_bad)
        << "seed " << kSeed << " round " << round << " at " << at << " value " << value;
  }
  EXPECT_GT(num_bad, 20);
}

std::string KindName(const testing::TestParamInfo<int>& info) {
  const char* const names[] = {"Window", "Table", "Block", "BlockWithPatterns", "FirstBlock"};
  return names[info.param];
}
// Parts of a large frame look at all of it together.
TEST(CheckItemTest, PartsOfALargeFrameMissNoNumber) {
  ObjectHeader header = TestHeader(ObjectKind::kWindow, 1, 1);
  header.num_tokens = 1000;
  header.num_kv_heads = 2;
  const FrameRules rules = FrameRules::Of(header);
  std::vector<std::byte> frame(2 * 2 * 1000 * 64 * 2);
  constexpr uint32_t kSeed = 3;
  std::mt19937 random(kSeed);
  for (int round = 0; round < 100; ++round) {
    std::vector<CheckItem> items;
    AppendCheckItems(frame.data(), rules, 0, 0, items);
    ASSERT_EQ(items.size(), NumCheckItems(rules));
    ASSERT_EQ(items.size(), (frame.size() + kCheckItemBytes - 1) / kCheckItemBytes);
    const size_t at = random() % (frame.size() / 2) * 2 + 1;
    frame[at] = std::byte{0x7c};
    int num_finds = 0;
    for (const CheckItem& item : items) {
      uint32_t flag = 0;
      CheckOnCpu({&item, 1}, {&rules, 1}, {&flag, 1});
      num_finds += static_cast<int>(flag);
    }
    EXPECT_EQ(num_finds, 1) << "seed " << kSeed << " byte " << at;
    frame[at] = std::byte{0};
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, FrameRulesTest, testing::Range(0, 5), KindName);

TEST(FrameRulesOfAHeaderTest, NameEachHeadsPart) {
  const FrameRules rules = FrameRules::Of(MakeTestWindow(2, 1, 5).header);
  ASSERT_EQ(rules.num_sections, 1u);
  EXPECT_EQ(rules.sections[0].head_bytes, 5u * 2 * 64 * 2);
}

}  // namespace
}  // namespace pkv
