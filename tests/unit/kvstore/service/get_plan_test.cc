#include "kvstore/service/get_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <vector>

#include "tests/support/status_matchers.h"
#include "tests/unit/kvstore/store/store_fixture.h"

namespace pkv {
namespace {

class GetPlanTest : public StoreFixture {
 protected:
  void SetUp() override {
    MakeStore(64);
    // Frames of 1024, 2048 and 768 bytes; three layers.
    for (int tokens : {4, 8, 3}) {
      objects_.push_back(MakeTestWindow(10 + tokens, tokens, tokens, 3));
      ASSERT_THAT(Put(objects_.back()), IsOk());
    }
    for (const SealedObject& object : objects_) spec_.keys.push_back(object.key());
    spec_.message_bytes = 4096;
  }
  void TearDown() override { plan_.reset(); }

  GetPlan& Plan() { return plan_.emplace(store_.get(), spec_); }

  // Takes everything; the bytes of each frame as the pieces give them, in order.
  std::map<std::pair<int, int>, std::vector<std::byte>> TakeAll(GetPlan& plan) {
    std::map<std::pair<int, int>, std::vector<std::byte>> frames;
    while (!plan.done()) {
      const GetPlan::Message message = plan.Next();
      EXPECT_LE(message.payload_bytes, spec_.message_bytes);
      for (const GetPlan::Piece& piece : message.pieces) {
        auto& frame = frames[{piece.object_index, piece.layer}];
        EXPECT_EQ(piece.offset, frame.size());
        frame.insert(frame.end(), piece.bytes.begin(), piece.bytes.end());
      }
      logical_bytes_ += message.logical_bytes;
      ++num_messages_;
    }
    return frames;
  }

  std::vector<SealedObject> objects_;
  GetSpec spec_;
  std::optional<GetPlan> plan_;
  uint64_t logical_bytes_ = 0;
  int num_messages_ = 0;
};

TEST_F(GetPlanTest, HandsOutEveryFrameByteForByte) {
  GetPlan& plan = Plan();
  const auto frames = TakeAll(plan);
  ASSERT_EQ(frames.size(), 9u);
  for (const auto& [place, bytes] : frames) {
    EXPECT_TRUE(std::ranges::equal(bytes, objects_[place.first].frame(place.second)));
  }
  // Windows are fp16: the logical bytes are the payload's. Three layers of 3840 bytes.
  EXPECT_EQ(logical_bytes_, 3u * 3840);
  EXPECT_EQ(num_messages_, 3) << "11520 bytes in messages of 4096";
  for (const absl::Status& status : plan.statuses()) EXPECT_THAT(status, IsOk());
}

TEST_F(GetPlanTest, MarksALayerDoneWithItsLastPiece) {
  spec_.message_bytes = 3840;  // exactly one layer
  GetPlan& plan = Plan();
  EXPECT_EQ(plan.Next().layers_done, 1);
  EXPECT_EQ(plan.Next().layers_done, 2);
  EXPECT_EQ(plan.Next().layers_done, 3);
  EXPECT_TRUE(plan.done());
  spec_.message_bytes = 3839;  // one byte is left over
  EXPECT_EQ(Plan().Next().layers_done, 0);
}

TEST_F(GetPlanTest, SplitsAFrameThatIsLargerThanAMessage) {
  spec_.message_bytes = 500;
  const auto frames = TakeAll(Plan());
  EXPECT_TRUE(std::ranges::equal(frames.at({1, 2}), objects_[1].frame(2)));
  EXPECT_EQ(num_messages_, 24) << "11520 / 500, rounded up";
}

TEST_F(GetPlanTest, TakesALayerRange) {
  spec_.layer_begin = 1;
  spec_.layer_end = 2;
  const auto frames = TakeAll(Plan());
  EXPECT_EQ(frames.size(), 3u);
  EXPECT_EQ(frames.count({0, 1}), 1u);
}

TEST_F(GetPlanTest, RefusesLayersAnObjectDoesNotHave) {
  spec_.layer_end = 4;
  GetPlan& plan = Plan();
  EXPECT_TRUE(plan.done());
  EXPECT_THAT(plan.statuses()[0], StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(GetPlanTest, GoesOnPastAMiss) {
  spec_.keys[1].id = TestDigest(999);
  GetPlan& plan = Plan();
  EXPECT_TRUE(plan.heads()[1].empty());
  EXPECT_TRUE(std::ranges::equal(plan.heads()[2], objects_[2].head()));
  EXPECT_EQ(TakeAll(plan).size(), 6u);
  EXPECT_THAT(plan.statuses()[1], StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(GetPlanTest, IsDoneAtOnceWhenNothingIsStored) {
  spec_.keys = {MakeTestWindow(999, 1).key()};
  EXPECT_TRUE(Plan().done());
  spec_.keys.clear();
  EXPECT_TRUE(Plan().done());
}

TEST_F(GetPlanTest, NeverHandsOutAFlippedBit) {
  const uint64_t layer_1 = objects_[1].head().size() + objects_[1].header.frame_bytes;
  FlipBit(store_->Find(objects_[1].key()), layer_1 + 77);
  GetPlan& plan = Plan();
  const auto frames = TakeAll(plan);
  EXPECT_EQ(frames.size(), 7u) << "layer 0 of the damaged object, and everything of the others";
  EXPECT_EQ(frames.count({1, 0}), 1u);
  EXPECT_EQ(frames.count({1, 1}), 0u);
  EXPECT_EQ(frames.count({1, 2}), 0u);
  EXPECT_THAT(plan.statuses()[1], StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(plan.statuses()[2], IsOk());
  EXPECT_EQ(observer_.failures.size(), 1u);
  EXPECT_FALSE(Has(objects_[1]));
}

TEST_F(GetPlanTest, NeverHandsOutADamagedHead) {
  FlipBit(store_->Find(objects_[0].key()), 130);
  GetPlan& plan = Plan();
  EXPECT_TRUE(plan.heads()[0].empty());
  EXPECT_THAT(plan.statuses()[0], StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_FALSE(Has(objects_[0]));
}

TEST_F(GetPlanTest, PiecesKeepTheirPin) {
  GetPlan::Message message = Plan().Next();
  plan_.reset();
  EXPECT_GT(store_->stats().pinned_bytes, 0u);
  EXPECT_EQ(store_->Delete(objects_[0].key()), DeleteResult::kDeleted);
  EXPECT_TRUE(std::ranges::equal(message.pieces[0].bytes, objects_[0].frame(0)));
  message.pieces.clear();
  EXPECT_EQ(store_->stats().pinned_bytes, 0u);
}

}  // namespace
}  // namespace pkv
