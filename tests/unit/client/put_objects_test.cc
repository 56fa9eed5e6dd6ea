#include "client/put_objects.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/scripted_put.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::ElementsAre;

class PutObjectsTest : public testing::Test {
 protected:
  std::vector<PutOutcome> Put() {
    std::vector<std::span<const std::byte>> bytes;
    for (const SealedObject& object : objects_) bytes.push_back(object.bytes());
    return PutObjects(scripted_.core, bytes);
  }
  void ServeStreams(int count) {
    for (int i = 0; i < count; ++i) scripted_.connection->scripts.push_back(server_.Script());
  }
  // The server is away for one stream.
  void RefuseStream() {
    scripted_.connection->scripts.push_back([](ScriptedStream& stream, const std::string*) {
      stream.End(absl::UnavailableError("restarting"));
    });
  }

  ScriptedCore scripted_ = MakeScriptedCore();
  ScriptedPutServer server_;
  std::vector<SealedObject> objects_;
};

TEST_F(PutObjectsTest, StoresObjectsOfSeveralKindsInTheirOrder) {
  objects_.push_back(MakeTestTable(1));
  objects_.push_back(MakeTestBlock(2, 2, objects_[0].header.id));
  objects_.push_back(MakeTestWindow(3, 3, 1, /*num_layers=*/5));
  ServeStreams(1);
  for (const PutOutcome& outcome : Put()) {
    EXPECT_THAT(outcome.status, IsOk());
    EXPECT_TRUE(outcome.stored);
  }
  EXPECT_THAT(server_.commit_order,
              ElementsAre(IdOf(objects_[0]), IdOf(objects_[1]), IdOf(objects_[2])));
  for (const SealedObject& object : objects_) {
    EXPECT_EQ(server_.stored[IdOf(object)], BytesOf(object));
  }
}

TEST_F(PutObjectsTest, EmptyPutCallsNobody) {
  EXPECT_TRUE(Put().empty());
  EXPECT_EQ(scripted_.connection->num_calls, 0);
}

TEST_F(PutObjectsTest, TriesAgainWhenTheServerComesBack) {
  objects_.push_back(MakeTestBlock(1, 1));
  RefuseStream();
  ServeStreams(1);
  EXPECT_THAT(Put()[0].status, IsOk());
  EXPECT_EQ(scripted_.core->counters.retries, 1u);
  EXPECT_EQ(scripted_.core->counters.failures, 0u);
  const MethodStatistics counted = scripted_.core->options.statistics->Read(CallMethod::kPut);
  EXPECT_EQ(counted.ended[static_cast<size_t>(absl::StatusCode::kOk)], 1u);
  EXPECT_EQ(counted.retries, 1u);
  EXPECT_EQ(counted.backing_off, 0u);
}

TEST_F(PutObjectsTest, GivesUpAfterMaxAttempts) {
  objects_.push_back(MakeTestBlock(1, 1));
  EXPECT_THAT(Put()[0].status, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(scripted_.connection->num_calls, scripted_.core->options.max_attempts);
  EXPECT_EQ(scripted_.core->counters.failures, 1u);
}

TEST_F(PutObjectsTest, RetriesOnlyTheObjectsThatFailed) {
  for (uint64_t id = 1; id <= 3; ++id) objects_.push_back(MakeTestBlock(id, 1));
  int num_begun = 0;
  server_.decide = [&](const v1::ObjectDescriptor& object) {
    ++num_begun;
    return num_begun == 2 ? v1::PUT_DECISION_REFUSED : v1::PUT_DECISION_WANTED;
  };
  ServeStreams(2);
  for (const PutOutcome& outcome : Put()) EXPECT_THAT(outcome.status, IsOk());
  EXPECT_EQ(num_begun, 3 + 1);
  EXPECT_THAT(server_.commit_order,
              ElementsAre(IdOf(objects_[0]), IdOf(objects_[2]), IdOf(objects_[1])));
}

TEST_F(PutObjectsTest, DoesNotRetryDifferentBytes) {
  objects_.push_back(MakeTestBlock(1, 1));
  server_.receive = [](const v1::PutCommit&) {
    v1::PutReceipt receipt;
    receipt.set_result(v1::PUT_RESULT_FAILED);
    receipt.mutable_status()->set_code(grpc::StatusCode::ALREADY_EXISTS);
    return receipt;
  };
  ServeStreams(2);
  EXPECT_THAT(Put()[0].status, StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_EQ(scripted_.connection->num_calls, 1);
}

// The table is refused at first, so the block that refers to it is refused for want of it.
TEST_F(PutObjectsTest, RetriesABlockTogetherWithItsTable) {
  objects_.push_back(MakeTestTable(1));
  objects_.push_back(MakeTestBlock(2, 2, objects_[0].header.id));
  int num_begun = 0;
  server_.decide = [&](const v1::ObjectDescriptor&) {
    return num_begun++ == 0 ? v1::PUT_DECISION_REFUSED : v1::PUT_DECISION_WANTED;
  };
  server_.receive = [&](const v1::PutCommit& commit) {
    v1::PutReceipt receipt;
    receipt.set_result(num_begun == 2 ? v1::PUT_RESULT_FAILED : v1::PUT_RESULT_STORED);
    if (num_begun == 2) {
      receipt.mutable_status()->set_code(grpc::StatusCode::FAILED_PRECONDITION);
    }
    return receipt;
  };
  ServeStreams(2);
  for (const PutOutcome& outcome : Put()) EXPECT_THAT(outcome.status, IsOk());
  EXPECT_EQ(num_begun, 4);
}

TEST_F(PutObjectsTest, RefusesBytesThatAreNoObjectAndStoresTheOthers) {
  objects_.push_back(MakeTestBlock(1, 1));
  objects_.push_back(MakeTestBlock(2, 2));
  objects_[0].buffer.data()[0] ^= std::byte{1};
  ServeStreams(1);
  const std::vector<PutOutcome> outcomes = Put();
  EXPECT_THAT(outcomes[0].status, StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(outcomes[1].status, IsOk());
}

TEST_F(PutObjectsTest, SplitsWhatIsLargerThanOneStream) {
  // Frames of 1 MiB: five objects of 8 layers are 40 MiB.
  for (uint64_t id = 1; id <= 5; ++id) {
    objects_.push_back(MakeTestWindow(id, 1, /*num_tokens=*/4096, /*num_layers=*/8));
  }
  scripted_.core->options.message_bytes = 1 << 20;
  ServeStreams(2);
  for (const PutOutcome& outcome : Put()) EXPECT_THAT(outcome.status, IsOk());
  EXPECT_EQ(scripted_.connection->num_calls, 2);
  EXPECT_EQ(server_.stored.size(), 5u);
}

}  // namespace
}  // namespace pkv
