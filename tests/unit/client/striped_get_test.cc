#include "client/striped_get.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/scripted_connection.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kObjects = 11, kStreams = 3;

// Blocks of two layers, and a window that has three.
class StripedGetTest : public testing::Test {
 protected:
  StripedGetTest() {
    for (int i = 0; i < kObjects; ++i) {
      SealedObject object =
          i + 1 < kObjects ? MakeTestBlock(i + 1, i) : MakeTestWindow(99, 7, 1, 3);
      keys_.push_back(object.key());
      parts_[i % kStreams].push_back(std::move(object));
    }
  }

  const SealedObject& object(int i) const { return parts_[i % kStreams][i / kStreams]; }

  // The server answers the next stream with `frames`.
  void Answer(std::vector<v1::DataFrame> frames) {
    scripted_.connection->scripts.push_back(
        [this, frames = std::move(frames)](ScriptedStream& stream, const std::string* message) {
          if (message == nullptr) return;
          v1::GetRequest request;
          ASSERT_TRUE(request.ParseFromString(*message));
          first_layers_.push_back(static_cast<int>(request.layer_begin()));
          for (const v1::DataFrame& frame : frames) stream.Deliver(frame);
          stream.End(absl::OkStatus());
        });
  }
  std::unique_ptr<StripedGet> Start(int first_layer = 0) {
    return std::make_unique<StripedGet>(scripted_.core, keys_, kStreams, Deadline(), Record(),
                                        first_layer);
  }
  absl::Time Deadline() const { return scripted_.core->clock->MonotonicNow() + absl::Seconds(5); }
  CallRecord Record() const { return scripted_.core->Record(CallMethod::kGet); }
  MethodStatistics Counted() const {
    return scripted_.core->options.statistics->Read(CallMethod::kGet);
  }
  uint64_t NumEnded(absl::StatusCode code) const {
    return Counted().ended[static_cast<size_t>(code)];
  }
  uint64_t NumEnded() const {
    const MethodStatistics counted = Counted();
    return std::accumulate(counted.ended.begin(), counted.ended.end(), uint64_t{0});
  }

  ScriptedCore scripted_ = MakeScriptedCore();
  std::vector<SealedObject> parts_[kStreams];
  std::vector<ObjectKey> keys_;
  std::vector<int> first_layers_;  // that each stream asked for
};

TEST_F(StripedGetTest, PutsTheStreamsTogether) {
  for (const auto& part : parts_) Answer(GetFrames(part, 1500));
  const auto get = Start();
  ASSERT_THAT(get->WaitForManifest(), IsOk());
  ASSERT_EQ(get->num_objects(), kObjects);
  ASSERT_THAT(get->WaitForLayer(1), IsOk());
  ASSERT_THAT(get->WaitForLayer(2), IsOk()) << "of the window alone";
  EXPECT_THAT(get->WaitForLayer(3),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("[0, 3)")));
  EXPECT_THAT(get->WaitForLayer(-1), StatusIs(absl::StatusCode::kInvalidArgument));
  ASSERT_THAT(get->WaitForAll(), IsOk());
  uint64_t bytes = 0;
  for (int i = 0; i < kObjects; ++i) {
    const SealedObject& wanted = object(i);
    EXPECT_EQ(get->header(i), wanted.header);
    EXPECT_TRUE(std::ranges::equal(get->frame(i, 1), wanted.frame(1))) << i;
    const AlignedBuffer taken = get->TakeObject(i);
    EXPECT_TRUE(std::ranges::equal(taken.span(), wanted.bytes())) << i;
    bytes += wanted.header.frame_bytes * wanted.header.num_layers;
  }
  EXPECT_EQ(get->received_bytes(), bytes);
  EXPECT_EQ(scripted_.connection->num_calls, kStreams);
  EXPECT_THAT(first_layers_, ElementsAre(0, 0, 0));
}

TEST_F(StripedGetTest, EveryStreamBeginsWithTheFirstLayerThatIsWanted) {
  for (const auto& part : parts_) Answer(GetFrames(part, 1500, 1));
  const auto get = Start(1);
  ASSERT_THAT(get->WaitForLayer(1), IsOk());
  ASSERT_THAT(get->WaitForLayer(2), IsOk());
  EXPECT_THAT(first_layers_, ElementsAre(1, 1, 1));
  uint64_t bytes = 0;
  for (int i = 0; i < kObjects; ++i) {
    const SealedObject& wanted = object(i);
    for (int layer = 1; layer < wanted.header.num_layers; ++layer) {
      EXPECT_TRUE(std::ranges::equal(get->frame(i, layer), wanted.frame(layer))) << i;
      bytes += wanted.header.frame_bytes;
    }
  }
  EXPECT_EQ(get->received_bytes(), bytes);
  EXPECT_EQ(NumEnded(absl::StatusCode::kOk), 1u) << "layer 0 is nobody's";
}

TEST_F(StripedGetTest, IsAbortedWhenAnObjectHasAnotherHeadThanIsExpected) {
  std::vector<std::string> heads;
  for (int i = 0; i < kObjects; ++i) {
    const std::span<const std::byte> head = object(i).head();
    heads.emplace_back(reinterpret_cast<const char*>(head.data()), head.size());
  }
  for (const bool is_replaced : {false, true}) {
    if (is_replaced) parts_[1][2] = MakeTestBlock(8, 100);
    for (const auto& part : parts_) Answer(GetFrames(part, 1500, 1));
    const auto get =
        std::make_unique<StripedGet>(scripted_.core, keys_, kStreams, Deadline(), Record(),
                                     /*first_layer=*/1, heads);
    const absl::Status status = get->WaitForLayer(1);
    if (is_replaced) {
      EXPECT_THAT(status, StatusIs(absl::StatusCode::kAborted, HasSubstr("object 7 (")));
    } else {
      EXPECT_THAT(status, IsOk());
    }
  }
}

// So many layers that whatever writes past those there are is seen.
TEST_F(StripedGetTest, ObjectsMayHaveFewerLayersThanTheFirstThatIsWanted) {
  constexpr int kFirstLayer = 1 << 30;
  for (const int max_streams : {1, 2}) {
    scripted_.core->options.num_get_streams = max_streams;
    for (int first = 0; first < max_streams; ++first) {
      std::vector<SealedObject> part;
      for (int i = first; i < kObjects; i += max_streams) {
        part.push_back(i + 1 < kObjects ? MakeTestBlock(i + 1, i) : MakeTestWindow(99, 7, 1, 3));
      }
      Answer({ManifestFrame(part)});
    }
    const auto get = StartGrpcGet(scripted_.core, keys_, Deadline(), Record(), kFirstLayer);
    EXPECT_THAT(get->WaitForLayer(2), IsOk());
    EXPECT_THAT(get->WaitForLayer(3), StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

TEST_F(StripedGetTest, IsOneCallThatEndsWithTheLastLayerOfAllStreams) {
  for (const auto& part : parts_) Answer(GetFrames(part, 1500));
  const auto get = Start();
  EXPECT_EQ(Counted().in_flight, 1u);
  ASSERT_THAT(get->WaitForLayer(0), IsOk());
  ASSERT_THAT(get->WaitForLayer(1), IsOk());
  EXPECT_EQ(Counted().in_flight, 1u) << "two streams have all of theirs";
  ASSERT_THAT(get->WaitForLayer(2), IsOk());
  EXPECT_EQ(Counted().in_flight, 0u);
  EXPECT_EQ(NumEnded(absl::StatusCode::kOk), 1u);
  EXPECT_EQ(NumEnded(), 1u);
  EXPECT_EQ(scripted_.core->counters.grpc_get_bytes, get->received_bytes());
}

TEST_F(StripedGetTest, IsOneCallThatIsCancelledWhenItIsGivenUp) {
  for (const auto& part : parts_) Answer(GetFrames(part, 1500));
  {
    const auto get = Start();
    ASSERT_THAT(get->WaitForLayer(0), IsOk());
    get->Cancel();
  }
  EXPECT_EQ(NumEnded(absl::StatusCode::kCancelled), 1u);
  EXPECT_EQ(NumEnded(), 1u);
  EXPECT_EQ(Counted().in_flight, 0u);
}

TEST_F(StripedGetTest, NamesAnObjectByItsPlaceInTheWholeList) {
  for (int stream = 0; stream < kStreams; ++stream) {
    std::vector<v1::DataFrame> frames = GetFrames(parts_[stream], 1500);
    if (stream == 1) frames[0].mutable_control()->mutable_manifest()->set_heads(2, "");
    Answer(frames);
  }
  const auto get = Start();
  EXPECT_THAT(get->WaitForAll(), StatusIs(absl::StatusCode::kNotFound, HasSubstr("object 7 (")));
}

TEST_F(StripedGetTest, EndsAllStreamsWithOne) {
  Answer(GetFrames(parts_[0], 1500));
  std::vector<v1::DataFrame> damaged = GetFrames(parts_[1], 1500);
  damaged[1].mutable_payload()->front() ^= 1;
  Answer(damaged);
  ScriptedStream* held = nullptr;
  scripted_.connection->scripts.push_back([&](ScriptedStream& stream, const std::string* message) {
    held = &stream;
    if (message != nullptr) stream.Deliver(ManifestFrame(parts_[2]));
  });
  const auto get = Start();
  EXPECT_THAT(get->WaitForLayer(0), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("object 1 (")));
  EXPECT_TRUE(held->cancelled());
  EXPECT_THAT(get->WaitForManifest(), StatusIs(absl::StatusCode::kDataLoss)) << "for good";
  EXPECT_EQ(scripted_.core->counters.failures, 1u);
  EXPECT_EQ(NumEnded(absl::StatusCode::kDataLoss), 1u);
  EXPECT_EQ(NumEnded(), 1u);
}

TEST_F(StripedGetTest, StartsAsManyStreamsAsTheObjectsAreWorth) {
  for (const auto& [num_objects, num_streams] : {std::pair(1, 1), {7, 1}, {8, 2}, {11, 2}}) {
    scripted_.connection->num_calls = 0;
    const auto get = StartGrpcGet(scripted_.core, {keys_.begin(), keys_.begin() + num_objects},
                                  Deadline(), Record());
    EXPECT_EQ(Counted().in_flight, 1u) << num_objects;
    EXPECT_EQ(scripted_.connection->num_calls, num_streams) << num_objects;
  }
  scripted_.core->options.num_get_streams = 1;
  scripted_.connection->num_calls = 0;
  const auto get = StartGrpcGet(scripted_.core, keys_, Deadline(), Record());
  EXPECT_EQ(scripted_.connection->num_calls, 1);
}

TEST_F(StripedGetTest, OneStreamOrSeveralBeginWithTheFirstLayerThatIsWanted) {
  for (const int max_streams : {1, 2}) {
    scripted_.core->options.num_get_streams = max_streams;
    for (int i = 0; i < max_streams; ++i) Answer({});
    const auto get = StartGrpcGet(scripted_.core, keys_, Deadline(), Record(), /*first_layer=*/1);
  }
  EXPECT_THAT(first_layers_, ElementsAre(1, 1, 1));
}

TEST_F(StripedGetTest, RefusesTooManyObjectsAndNone) {
  for (const size_t count : {size_t{0}, size_t{5000}}) {
    const auto get =
        StartGrpcGet(scripted_.core, std::vector<ObjectKey>(count, keys_[0]), Deadline(), Record());
    EXPECT_THAT(get->WaitForManifest(), StatusIs(absl::StatusCode::kInvalidArgument));
  }
  EXPECT_EQ(NumEnded(absl::StatusCode::kInvalidArgument), 2u);
}

}  // namespace
}  // namespace pkv
