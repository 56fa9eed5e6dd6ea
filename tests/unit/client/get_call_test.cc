#include "client/get_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/scripted_connection.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

constexpr size_t kMessageBytes = 1500;

class GetCallTest : public testing::Test {
 protected:
  GetCallTest() {
    objects_.push_back(MakeTestTable(1));
    objects_.push_back(MakeTestBlock(2, 2));
    for (const SealedObject& object : objects_) keys_.push_back(object.key());
  }

  std::unique_ptr<GetCall> StartCall() {
    return std::make_unique<GetCall>(
        scripted_.core, keys_,
        scripted_.core->clock->MonotonicNow() + scripted_.core->options.get_deadline,
        scripted_.core->Record(CallMethod::kGet));
  }

  // A server that sends `frames` and ends with `status`; keeps the request.
  ScriptedStream::Script Sends(std::vector<v1::DataFrame> frames, absl::Status status) {
    return [this, frames, status](ScriptedStream& stream, const std::string* message) {
      if (message == nullptr) return;
      requests_.emplace_back();
      EXPECT_TRUE(requests_.back().ParseFromString(*message));
      for (const v1::DataFrame& frame : frames) stream.Deliver(frame);
      stream.End(status);
    };
  }

  ClientCounters Counted() {
    ClientCounters counters;
    counters.retries = scripted_.core->counters.retries;
    counters.failures = scripted_.core->counters.failures;
    counters.integrity_failures = scripted_.core->counters.integrity_failures;
    counters.get_bytes = scripted_.core->counters.grpc_get_bytes;
    return counters;
  }

  ScriptedCore scripted_ = MakeScriptedCore();
  std::vector<SealedObject> objects_;
  std::vector<ObjectKey> keys_;
  std::vector<v1::GetRequest> requests_;
};

TEST_F(GetCallTest, ReturnsTheBytesThatWereStored) {
  scripted_.connection->scripts.push_back(
      Sends(GetFrames(objects_, kMessageBytes), absl::OkStatus()));
  auto call = StartCall();
  ASSERT_THAT(call->WaitForManifest(), IsOk());
  EXPECT_EQ(call->header(1), objects_[1].header);
  ASSERT_THAT(call->WaitForLayer(1), IsOk());
  EXPECT_EQ(std::memcmp(call->frame(1, 1).data(), objects_[1].frame(1).data(),
                        objects_[1].header.frame_bytes),
            0);
  ASSERT_THAT(call->WaitForAll(), IsOk());
  for (int i = 0; i < call->num_objects(); ++i) {
    const AlignedBuffer buffer = call->TakeObject(i);
    ASSERT_EQ(buffer.size(), objects_[i].bytes().size());
    EXPECT_EQ(std::memcmp(buffer.data(), objects_[i].bytes().data(), buffer.size()), 0);
  }
  ASSERT_EQ(requests_.size(), 1u);
  EXPECT_EQ(requests_[0].objects_size(), 2);
  EXPECT_EQ(requests_[0].message_bytes(), scripted_.core->options.message_bytes);
  EXPECT_EQ(Counted().get_bytes, call->received_bytes());
}

TEST_F(GetCallTest, ResumesFromTheFirstMissingLayerWhenTheServerGoesAway) {
  std::vector<v1::DataFrame> first = {ManifestFrame(objects_)};
  for (v1::DataFrame& frame : LayerFrames(objects_, 0, 1, kMessageBytes)) first.push_back(frame);
  std::vector<v1::DataFrame> second = {ManifestFrame(objects_)};
  for (v1::DataFrame& frame : LayerFrames(objects_, 1, 2, kMessageBytes)) second.push_back(frame);
  scripted_.connection->scripts.push_back(Sends(first, absl::UnavailableError("gone")));
  scripted_.connection->scripts.push_back(Sends(second, absl::OkStatus()));
  auto call = StartCall();
  ASSERT_THAT(call->WaitForAll(), IsOk());
  ASSERT_EQ(requests_.size(), 2u);
  EXPECT_EQ(requests_[1].layer_begin(), 1u);
  EXPECT_EQ(Counted().retries, 1u);
}

TEST_F(GetCallTest, GivesUpAfterMaxAttempts) {
  auto call = StartCall();
  EXPECT_THAT(call->WaitForAll(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(scripted_.connection->num_calls, scripted_.core->options.max_attempts);
  EXPECT_EQ(Counted().failures, 1u);
  // The answer does not change, and nothing is tried again.
  EXPECT_THAT(call->WaitForManifest(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(scripted_.connection->num_calls, scripted_.core->options.max_attempts);
}

TEST_F(GetCallTest, DoesNotRetryWhatWillNotPass) {
  for (const absl::StatusCode code :
       {absl::StatusCode::kDataLoss, absl::StatusCode::kInvalidArgument,
        absl::StatusCode::kFailedPrecondition, absl::StatusCode::kInternal}) {
    scripted_.connection->num_calls = 0;
    scripted_.connection->scripts.push_back(Sends({}, absl::Status(code, "no")));
    EXPECT_THAT(StartCall()->WaitForAll(), StatusIs(code));
    EXPECT_EQ(scripted_.connection->num_calls, 1);
  }
}

TEST_F(GetCallTest, IsCountedOkWithItsLastLayerAndCancelledWithoutIt) {
  const auto ended = [this](absl::StatusCode code) {
    return scripted_.core->options.statistics->Read(CallMethod::kGet)
        .ended[static_cast<size_t>(code)];
  };
  for (const bool reads_all : {true, false}) {
    scripted_.connection->scripts.push_back(
        Sends(GetFrames(objects_, kMessageBytes), absl::OkStatus()));
    auto call = StartCall();
    ASSERT_THAT(call->WaitForLayer(0), IsOk());
    EXPECT_EQ(scripted_.core->options.statistics->Read(CallMethod::kGet).in_flight, 1u);
    if (reads_all) {
      ASSERT_THAT(call->WaitForLayer(1), IsOk());
      EXPECT_EQ(ended(absl::StatusCode::kOk), 1u);
    }
  }
  EXPECT_EQ(ended(absl::StatusCode::kOk), 1u);
  EXPECT_EQ(ended(absl::StatusCode::kCancelled), 1u);
}

TEST_F(GetCallTest, MissIsNotFoundAndNoFailure) {
  v1::DataFrame manifest = ManifestFrame(objects_);
  manifest.mutable_control()->mutable_manifest()->set_heads(0, "");
  scripted_.connection->scripts.push_back(Sends({manifest}, absl::OkStatus()));
  auto call = StartCall();
  EXPECT_THAT(call->WaitForManifest(),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("object 0")));
  EXPECT_EQ(Counted().failures, 0u);
  const MethodStatistics statistics = scripted_.core->options.statistics->Read(CallMethod::kGet);
  EXPECT_EQ(statistics.ended[static_cast<size_t>(absl::StatusCode::kNotFound)], 1u);
}

// Every layer before the damaged one may be used; the damaged one is refused and counted once.
TEST_F(GetCallTest, DamagedFrameIsDataLossForItsLayer) {
  std::vector<v1::DataFrame> frames = GetFrames(objects_, kMessageBytes);
  const size_t last_payload = frames.size() - 2;
  frames[last_payload].mutable_payload()->back() ^= 1;
  scripted_.connection->scripts.push_back(Sends(frames, absl::OkStatus()));
  auto call = StartCall();
  EXPECT_THAT(call->WaitForLayer(0), IsOk());
  EXPECT_THAT(call->WaitForLayer(1), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("object 1")));
  EXPECT_THAT(call->WaitForAll(), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(Counted().integrity_failures, 1u);
  EXPECT_EQ(scripted_.connection->num_calls, 1);
}

TEST_F(GetCallTest, RefusesMessagesThatAreNoDataFrames) {
  v1::DataFrame lying = LayerFrames(objects_, 0, 1, kMessageBytes)[0];
  lying.mutable_payload()->pop_back();
  scripted_.connection->scripts.push_back(
      Sends({ManifestFrame(objects_), lying}, absl::OkStatus()));
  EXPECT_THAT(StartCall()->WaitForAll(), StatusIs(absl::StatusCode::kDataLoss));
}

TEST_F(GetCallTest, RefusesAStreamThatEndsEarlyWithoutError) {
  scripted_.connection->scripts.push_back(Sends({ManifestFrame(objects_)}, absl::OkStatus()));
  EXPECT_THAT(StartCall()->WaitForAll(),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("0 complete layers")));
}

TEST_F(GetCallTest, EndsWhenNothingArrivesForTheProgressTimeout) {
  scripted_.core->options.progress_timeout = absl::Milliseconds(20);
  scripted_.connection->scripts.push_back([](ScriptedStream&, const std::string*) {});
  EXPECT_THAT(StartCall()->WaitForManifest(),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("nothing arrived for 20ms")));
}

TEST_F(GetCallTest, EndsAtItsDeadline) {
  scripted_.core->options.get_deadline = absl::Milliseconds(20);
  scripted_.connection->scripts.push_back([](ScriptedStream&, const std::string*) {});
  EXPECT_THAT(StartCall()->WaitForManifest(),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("not done in 20ms")));
}

TEST_F(GetCallTest, DoesNotRetryBeyondItsDeadline) {
  scripted_.core->options.get_deadline = absl::Milliseconds(500);
  scripted_.core->options.initial_backoff = absl::Seconds(2);
  scripted_.core->options.max_backoff = absl::Seconds(2);
  EXPECT_THAT(StartCall()->WaitForManifest(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(scripted_.connection->num_calls, 1);
}

TEST_F(GetCallTest, CancelFromAnotherThreadEndsAWait) {
  bool cancelled = false;
  scripted_.connection->scripts.push_back([](ScriptedStream&, const std::string*) {});
  auto call = StartCall();
  std::thread other([&] {
    call->Cancel();
    cancelled = true;
  });
  EXPECT_THAT(call->WaitForAll(), StatusIs(absl::StatusCode::kCancelled));
  other.join();
  EXPECT_TRUE(cancelled);
  EXPECT_THAT(call->WaitForLayer(0), StatusIs(absl::StatusCode::kCancelled));
}

TEST_F(GetCallTest, CancelEndsAPauseBetweenAttempts) {
  scripted_.core->options.get_deadline = absl::Hours(2);
  scripted_.core->options.initial_backoff = absl::Hours(1);
  scripted_.core->options.max_backoff = absl::Hours(1);
  auto call = StartCall();
  std::thread other([&] { call->Cancel(); });
  EXPECT_THAT(call->WaitForAll(), StatusIs(absl::StatusCode::kCancelled));
  other.join();
}

TEST_F(GetCallTest, RefusesNoKeysAndTooMany) {
  keys_.clear();
  EXPECT_THAT(StartCall()->WaitForAll(), StatusIs(absl::StatusCode::kInvalidArgument));
  keys_.assign(kMaxObjectsPerCall + 1, objects_[0].key());
  EXPECT_THAT(StartCall()->WaitForAll(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("4097 keys")));
  EXPECT_EQ(scripted_.connection->num_calls, 0);
}

TEST_F(GetCallTest, RefusesALayerThatNoObjectHas) {
  scripted_.connection->scripts.push_back(
      Sends(GetFrames(objects_, kMessageBytes), absl::OkStatus()));
  auto call = StartCall();
  EXPECT_THAT(call->WaitForLayer(2), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(call->WaitForLayer(-1), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(call->WaitForLayer(1), IsOk());
}

}  // namespace
}  // namespace pkv
