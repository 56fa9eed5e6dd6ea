#include "kvstore/service/put_session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
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
