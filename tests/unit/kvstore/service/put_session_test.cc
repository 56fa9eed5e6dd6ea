#include "kvstore/service/put_session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/mman.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "proto/transport/convert.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/kvstore/service/service_fixture.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr const char* kStored = "pkv_block_puts_total{result=\"stored\"}";
constexpr const char* kDuplicate = "pkv_block_puts_total{result=\"duplicate\"}";
constexpr const char* kConflict = "pkv_block_puts_total{result=\"conflict\"}";
constexpr const char* kInvalid = "pkv_block_puts_total{result=\"invalid\"}";
constexpr const char* kAbandoned = "pkv_block_puts_total{result=\"abandoned\"}";

class PutSessionTest : public ServiceFixture {
 protected:
  void SetUp() override {
    MakeService(8);
    session_.emplace(parts_);
  }
  void TearDown() override { session_.reset(); }

  absl::StatusOr<std::vector<v1::PutReply>> Take(const v1::FrameControl& control,
                                                 std::span<const std::byte> payload = {}) {
    DecodedDataFrame frame;
    frame.control = control;
    if (!payload.empty()) {
      frame.payload = PayloadReader({grpc::Slice(payload.data(), payload.size())});
    }
    return session_->Take(frame);
  }

  static v1::FrameControl BeginOf(std::initializer_list<const SealedObject*> objects) {
    v1::FrameControl control;
    for (const SealedObject* object : objects) {
      v1::ObjectDescriptor* descriptor = control.mutable_put_begin()->add_objects();
      *descriptor->mutable_key() = ToProto(object->key());
      descriptor->set_num_layers(object->header.num_layers);
      descriptor->set_frame_bytes(object->header.frame_bytes);
    }
    return control;
  }

  absl::Status SendFrame(uint32_t object_index, uint32_t layer, uint64_t offset,
                         std::span<const std::byte> bytes) {
    v1::FrameControl control;
    v1::Piece* piece = control.add_pieces();
    piece->set_object_index(object_index);
    piece->set_layer(layer);
    piece->set_offset(offset);
    piece->set_length(static_cast<uint32_t>(bytes.size()));
    const auto replies = Take(control, bytes);
    if (!replies.ok()) return replies.status();
    EXPECT_THAT(*replies, IsEmpty());
    return absl::OkStatus();
  }

  void SendFrames(uint32_t object_index, const SealedObject& object) {
    for (int layer = 0; layer < object.header.num_layers; ++layer) {
      ASSERT_THAT(SendFrame(object_index, layer, 0, object.frame(layer)), IsOk());
    }
  }

  absl::StatusOr<v1::PutReceipt> Commit(uint32_t object_index, std::span<const std::byte> head) {
    v1::FrameControl control;
    control.mutable_put_commit()->set_object_index(object_index);
    control.mutable_put_commit()->set_head(head.data(), head.size());
    const auto replies = Take(control);
    if (!replies.ok()) return replies.status();
    return replies->at(0).receipt();
  }

  std::optional<PutSession> session_;
};

TEST_F(PutSessionTest, StoresWhatIsBegunSentAndCommitted) {
  const SealedObject object = MakeTestWindow(2, 1);
  const auto accepted = Take(BeginOf({&object}));
  ASSERT_THAT(accepted, IsOk());
  EXPECT_EQ(accepted->at(0).accepted().decisions(0), v1::PUT_DECISION_WANTED);
  EXPECT_GT(store_->stats().reserved_bytes, 0u) << "memory is reserved before any payload";
  SendFrames(0, object);
  EXPECT_FALSE(Has(object));
  EXPECT_EQ(Commit(0, object.head())->result(), v1::PUT_RESULT_STORED);
  EXPECT_TRUE(Has(object));
  EXPECT_EQ(Metric(kStored), 1);
  EXPECT_EQ(Metric("pkv_payload_bytes_total{direction=\"in\",transport=\"grpc\"}"), 512);
  EXPECT_EQ(Metric("pkv_logical_bytes_total{direction=\"in\"}"), 512);
  session_.reset();
  EXPECT_EQ(Metric("pkv_transfer_bytes_sum{direction=\"in\"}"), 512);
}

TEST_F(PutSessionTest, WantsNothingThatIsStored) {
  const SealedObject object = MakeTestWindow(2, 1), other = MakeTestWindow(2, 99);
  ASSERT_THAT(Put(object), IsOk());
  const auto accepted = Take(BeginOf({&object, &object, &object}));
  ASSERT_THAT(accepted, IsOk());
  EXPECT_EQ(accepted->at(0).accepted().decisions(0), v1::PUT_DECISION_PRESENT);
  SendFrames(0, object);  // ignored
  EXPECT_EQ(Commit(0, object.head())->result(), v1::PUT_RESULT_DUPLICATE);
  EXPECT_EQ(Commit(1, {})->result(), v1::PUT_RESULT_DUPLICATE);
  const auto conflict = Commit(2, other.head());
  EXPECT_EQ(conflict->result(), v1::PUT_RESULT_FAILED);
  EXPECT_EQ(conflict->status().code(), static_cast<int>(absl::StatusCode::kAlreadyExists));
  EXPECT_EQ(Metric(kDuplicate), 2);
  EXPECT_EQ(Metric(kConflict), 1);
}

TEST_F(PutSessionTest, KeepsAPresentObjectUntilItEnds) {
  const SealedObject object = MakeTestWindow(2, 1);
  ASSERT_THAT(Put(object), IsOk());
  ASSERT_THAT(Take(BeginOf({&object})), IsOk());
  EXPECT_GT(store_->stats().pinned_bytes, 0u);
  session_.reset();
  EXPECT_EQ(store_->stats().pinned_bytes, 0u);
}

TEST_F(PutSessionTest, RefusesWhatDoesNotFitBeforeItIsSent) {
  const SealedObject large = MakeTestWindow(2, 1, 128), small = MakeTestWindow(3, 1);
  const auto accepted = Take(BeginOf({&large, &small}));
  ASSERT_THAT(accepted, IsOk());
  const v1::PutAccepted& answer = accepted->at(0).accepted();
  EXPECT_EQ(answer.decisions(0), v1::PUT_DECISION_REFUSED);
  EXPECT_EQ(answer.decisions(1), v1::PUT_DECISION_WANTED);
  EXPECT_EQ(answer.refusals(0).object_index(), 0u);
  EXPECT_EQ(answer.refusals(0).code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(Metric("pkv_rpc_rejected_total{reason=\"memory\"}"), 1);
  EXPECT_EQ(Commit(0, large.head())->result(), v1::PUT_RESULT_FAILED);
}

TEST_F(PutSessionTest, RefusesAKeyThatIsNone) {
  const SealedObject object = MakeTestWindow(2, 1);
  v1::FrameControl begin = BeginOf({&object});
  begin.mutable_put_begin()->mutable_objects(0)->mutable_key()->set_id("short");
  const auto accepted = Take(begin);
  ASSERT_THAT(accepted, IsOk());
  EXPECT_EQ(accepted->at(0).accepted().refusals(0).code(),
            static_cast<int>(absl::StatusCode::kInvalidArgument));
}

TEST_F(PutSessionTest, GivesMemoryBackWhenTheStreamBreaks) {
  const SealedObject first = MakeTestWindow(2, 1), second = MakeTestWindow(3, 1);
  ASSERT_THAT(Take(BeginOf({&first, &second})), IsOk());
  SendFrames(0, first);
  SendFrames(1, second);
  EXPECT_EQ(Commit(0, first.head())->result(), v1::PUT_RESULT_STORED);
  session_.reset();
  EXPECT_EQ(store_->stats().reserved_bytes, 0u);
  EXPECT_TRUE(Has(first));
  EXPECT_FALSE(Has(second));
  EXPECT_EQ(Metric(kAbandoned), 1);
}

TEST_F(PutSessionTest, TellsWhatIsWrongWithOneObjectInItsReceipt) {
  const SealedObject good = MakeTestWindow(2, 1), bad = MakeTestWindow(3, 1);
  ASSERT_THAT(Take(BeginOf({&good, &bad})), IsOk());
  ASSERT_THAT(SendFrame(1, 0, 128, bad.frame(0).first(128)), IsOk()) << "a gap";
  SendFrames(0, good);
  SendFrames(1, bad);
  const auto failed = Commit(1, bad.head());
  EXPECT_EQ(failed->result(), v1::PUT_RESULT_FAILED);
  EXPECT_THAT(failed->status().message(), HasSubstr("offset 128"));
  EXPECT_EQ(Commit(0, good.head())->result(), v1::PUT_RESULT_STORED);
  EXPECT_EQ(Metric(kInvalid), 1);
}

TEST_F(PutSessionTest, NoticesBytesThatChangedOnTheWay) {
  const SealedObject object = MakeTestWindow(2, 1);
  ASSERT_THAT(Take(BeginOf({&object})), IsOk());
  std::vector<std::byte> frame(object.frame(0).begin(), object.frame(0).end());
  frame[3] ^= std::byte{1};
  ASSERT_THAT(SendFrame(0, 0, 0, frame), IsOk());
  ASSERT_THAT(SendFrame(0, 1, 0, object.frame(1)), IsOk());
  EXPECT_EQ(Commit(0, object.head())->status().code(),
            static_cast<int>(absl::StatusCode::kDataLoss));
  EXPECT_EQ(Metric("pkv_integrity_failures_total{stage=\"wire\"}"), 1);
}

TEST_F(PutSessionTest, EndsAStreamThatBreaksTheProtocol) {
  const SealedObject object = MakeTestWindow(2, 1);
  EXPECT_THAT(Take({}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("begin")));
  ASSERT_THAT(Take(BeginOf({&object})), IsOk());
  EXPECT_THAT(Take(BeginOf({&object})), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(SendFrame(1, 0, 0, object.frame(0)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("object_index 1")));
  EXPECT_THAT(Commit(1, {}), StatusIs(absl::StatusCode::kInvalidArgument));
  v1::FrameControl trailer;
  trailer.mutable_trailer();
  EXPECT_THAT(Take(trailer), StatusIs(absl::StatusCode::kInvalidArgument));
  ASSERT_THAT(Commit(0, {}), IsOk());
  EXPECT_THAT(Commit(0, {}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("second commit")));
}

TEST_F(PutSessionTest, RefusesMoreObjectsThanACallMayName) {
  const SealedObject object = MakeTestWindow(2, 1);
  v1::FrameControl begin = BeginOf({&object});
  while (begin.put_begin().objects_size() <= kMaxObjectsPerCall) {
    *begin.mutable_put_begin()->add_objects() = begin.put_begin().objects(0);
  }
  EXPECT_THAT(Take(begin), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("4097")));
  EXPECT_EQ(store_->stats().reserved_bytes, 0u);
}

// Puts whose payload stands in a stage: a client of this host writes there, whenever it likes.
class PutSessionStageTest : public PutSessionTest {
 protected:
  void SetUp() override {
    PutSessionTest::SetUp();
    lent_ = stages_.Lend().value();
    memory_ = static_cast<std::byte*>(
        mmap(nullptr, kShmStageBytes, PROT_READ | PROT_WRITE, MAP_SHARED, lent_.stage->fd(), 0));
    ASSERT_NE(memory_, MAP_FAILED);
  }
  void TearDown() override {
    munmap(memory_, kShmStageBytes);
    PutSessionTest::TearDown();
    lent_.stage.reset();
    EXPECT_EQ(stages_.bytes(), is_lent_ ? kShmStageBytes : 0);
    if (is_lent_) TakeBack();
  }

  void TakeBack() {
    stages_.TakeBack(lent_.token);
    is_lent_ = false;
  }
  bool Begin(const std::string& token) {
    v1::FrameControl begin = BeginOf({&object_});
    begin.mutable_put_begin()->set_stage(token);
    const auto replies = Take(begin);
    EXPECT_THAT(replies, IsOk());
    return replies.ok() && replies->at(0).accepted().staged();
  }
  // Says that a frame stands at `offset`; what was answered.
  absl::StatusOr<std::vector<v1::PutReply>> Point(int layer, uint64_t offset) {
    v1::FrameControl control;
    control.mutable_staged()->set_offset(offset);
    control.mutable_staged()->set_bytes(object_.header.frame_bytes);
    v1::Piece* piece = control.add_pieces();
    piece->set_layer(static_cast<uint32_t>(layer));
    piece->set_length(static_cast<uint32_t>(object_.header.frame_bytes));
    return Take(control);
  }
  void Stage(int layer, uint64_t offset) {
    std::ranges::copy(object_.frame(layer), memory_ + offset);
    const auto replies = Point(layer, offset);
    ASSERT_THAT(replies, IsOk());
    ASSERT_EQ(replies->size(), 1u);
    EXPECT_TRUE(replies->at(0).has_taken());
  }

  const SealedObject object_ = MakeTestWindow(2, 1);
  ShmStages::Lent lent_;
  bool is_lent_ = true;
  std::byte* memory_ = nullptr;
};

TEST_F(PutSessionStageTest, StoresWhatStandsThereAndCountsItApart) {
  ASSERT_TRUE(Begin(lent_.token));
  Stage(0, kShmStageBytes - object_.header.frame_bytes);
  Stage(1, 0);
  EXPECT_EQ(Commit(0, object_.head())->result(), v1::PUT_RESULT_STORED);
  EXPECT_TRUE(Has(object_));
  EXPECT_EQ(Metric("pkv_payload_bytes_total{direction=\"in\",transport=\"shm\"}"), 512);
  EXPECT_EQ(Metric("pkv_payload_bytes_total{direction=\"in\",transport=\"grpc\"}"), 0);
}

// The client keeps its mapping. Whatever it does once the frame was taken changes nothing that is
// served, and nothing that was verified.
TEST_F(PutSessionStageTest, BytesThatChangeLaterAreNotTheStoredOnes) {
  ASSERT_TRUE(Begin(lent_.token));
  Stage(0, 0);
  memory_[0] ^= std::byte{1};
  Stage(1, 4096);
  memory_[4096] ^= std::byte{1};
  EXPECT_EQ(Commit(0, object_.head())->result(), v1::PUT_RESULT_STORED);
  std::fill_n(memory_, 8192, std::byte{0xee});
  const Lease lease = store_->Find(object_.key());
  ASSERT_TRUE(lease);
  EXPECT_TRUE(std::ranges::equal(lease.bytes(), object_.bytes()));
}

TEST_F(PutSessionStageTest, BytesThatChangedBeforeAreDamage) {
  ASSERT_TRUE(Begin(lent_.token));
  Stage(0, 0);
  std::ranges::copy(object_.frame(1), memory_);
  memory_[17] ^= std::byte{1};
  ASSERT_THAT(Point(1, 0), IsOk());
  EXPECT_EQ(Commit(0, object_.head())->status().code(),
            static_cast<int>(absl::StatusCode::kDataLoss));
  EXPECT_FALSE(Has(object_));
}

TEST_F(PutSessionStageTest, AStageThatIsNotLentIsNotUsed) {
  EXPECT_FALSE(Begin(std::string(lent_.token.size(), 'x')));
  EXPECT_THAT(Point(0, 0), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("stage")));
}

TEST_F(PutSessionStageTest, WithoutShmPayloadComesInMessages) {
  parts_.stages = nullptr;
  session_.emplace(parts_);
  EXPECT_FALSE(Begin(lent_.token));
  SendFrames(0, object_);
  EXPECT_EQ(Commit(0, object_.head())->result(), v1::PUT_RESULT_STORED);
}

TEST_F(PutSessionStageTest, APlaceOutsideTheStageEndsTheStream) {
  ASSERT_TRUE(Begin(lent_.token));
  for (const uint64_t offset : {kShmStageBytes, kShmStageBytes - 1, ~uint64_t{0}}) {
    EXPECT_THAT(Point(0, offset), StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

// Of an object that is not wanted the bytes are passed over, and those of the next one stand behind
// them.
TEST_F(PutSessionStageTest, PiecesOfAnObjectThatIsPresentArePassedOver) {
  const SealedObject present = MakeTestWindow(3, 1);
  ASSERT_THAT(Put(present), IsOk());
  v1::FrameControl begin = BeginOf({&present, &object_});
  begin.mutable_put_begin()->set_stage(lent_.token);
  ASSERT_THAT(Take(begin), IsOk());
  const uint64_t frame_bytes = object_.header.frame_bytes;
  for (int layer = 0; layer < 2; ++layer) {
    std::ranges::copy(object_.frame(layer), memory_ + frame_bytes);
    v1::FrameControl control;
    control.mutable_staged()->set_bytes(2 * frame_bytes);
    for (const uint32_t object_index : {0, 1}) {
      v1::Piece* piece = control.add_pieces();
      piece->set_object_index(object_index);
      piece->set_layer(static_cast<uint32_t>(layer));
      piece->set_length(static_cast<uint32_t>(frame_bytes));
    }
    ASSERT_THAT(Take(control), IsOk());
  }
  EXPECT_EQ(Commit(1, object_.head())->result(), v1::PUT_RESULT_STORED);
  EXPECT_EQ(Commit(0, present.head())->result(), v1::PUT_RESULT_DUPLICATE);
}

// The connection ended, and the put does not depend on it: it keeps its stage until it ends.
TEST_F(PutSessionStageTest, APutGoesOnWhenItsStageIsTakenBack) {
  ASSERT_TRUE(Begin(lent_.token));
  TakeBack();
  lent_.stage.reset();
  Stage(0, 0);
  Stage(1, 0);
  EXPECT_EQ(Commit(0, object_.head())->result(), v1::PUT_RESULT_STORED);
  EXPECT_EQ(stages_.bytes(), kShmStageBytes);
}

class PutSessionOnDiskTest : public PutSessionTest {
 protected:
  void SetUp() override {
    MakeLog();
    PutSessionTest::SetUp();
    ASSERT_THAT(Put(object_), IsOk());
    MoveToDisk(object_);
  }
  // Begins with the object and commits with its head, no frame sent. The receipt.
  v1::PutReceipt BeginAndCommit(const SealedObject& object) {
    const auto accepted = Take(BeginOf({&object}));
    EXPECT_THAT(accepted, IsOk());
    EXPECT_EQ(accepted->at(0).accepted().decisions(0), v1::PUT_DECISION_PRESENT);
    v1::FrameControl control;
    control.mutable_put_commit()->set_head(object.head().data(), object.head().size());
    const auto committed = Take(control);
    EXPECT_THAT(committed, IsOk());
    return committed->at(0).receipt();
  }

  const SealedObject object_ = MakeTestWindow(2, 1);
};

TEST_F(PutSessionOnDiskTest, WantsNothingOfWhatIsOnDisk) {
  EXPECT_EQ(BeginAndCommit(object_).result(), v1::PUT_RESULT_DUPLICATE);
  EXPECT_FALSE(Has(object_)) << "it stays where it is";
}

TEST_F(PutSessionOnDiskTest, RefusesOtherBytesThanThoseOnDisk) {
  const v1::PutReceipt receipt = BeginAndCommit(MakeTestWindow(2, 9));
  EXPECT_EQ(receipt.result(), v1::PUT_RESULT_FAILED);
  EXPECT_EQ(receipt.status().code(), static_cast<int>(absl::StatusCode::kAlreadyExists));
  EXPECT_EQ(Metric(kConflict), 1);
}

}  // namespace
}  // namespace pkv
