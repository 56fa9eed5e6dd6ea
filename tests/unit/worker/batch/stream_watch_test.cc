#include "worker/batch/stream_watch.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

#include "proto/base/clock.h"
#include "tests/support/batch_fixture.h"

namespace pkv {
namespace {

class StreamWatchTest : public BatchTest {
 protected:
  void SetUp() override {
    request_ = StoredRequest(Prompt(1, 200), 1);
    stream_ = watch_.Watch(cache_.StartGet(request_.keys));
  }

  BatchRequest request_;
  StreamWatch watch_;
  std::unique_ptr<GetStream> stream_;
};

TEST_F(StreamWatchTest, PassesTheDownloadThrough) {
  const std::unique_ptr<GetStream> plain = cache_.StartGet(request_.keys);
  ASSERT_THAT(stream_->WaitForManifest(), IsOk());
  ASSERT_THAT(plain->WaitForAll(), IsOk());
  ASSERT_THAT(stream_->WaitForAll(), IsOk());
  ASSERT_EQ(stream_->num_objects(), 2);
  EXPECT_EQ(stream_->received_bytes(), plain->received_bytes());
  for (const int i : {0, 1}) {
    EXPECT_EQ(stream_->header(i), plain->header(i));
    EXPECT_EQ(stream_->frame(i, 0).size(), plain->frame(i, 0).size());
    EXPECT_EQ(stream_->TakeObject(i).span().size(), plain->TakeObject(i).span().size());
  }
}

TEST_F(StreamWatchTest, TellsWhenFramesWereTakenBack) {
  ASSERT_THAT(stream_->WaitForAll(), IsOk());
  EXPECT_THAT(stream_->CheckHeld(), IsOk());
  EXPECT_FALSE(watch_.failed());
  cache_.TakeBack();
  EXPECT_THAT(stream_->CheckHeld(), StatusIs(absl::StatusCode::kAborted));
  EXPECT_TRUE(watch_.failed());
}

TEST_F(StreamWatchTest, KnowsWhenTheLastLayerArrived) {
  EXPECT_EQ(watch_.last_arrival(), absl::InfinitePast());
  const absl::Time before = Clock::Real()->MonotonicNow();
  ASSERT_THAT(stream_->WaitForLayer(0), IsOk());
  EXPECT_GE(watch_.last_arrival(), before);
  EXPECT_LE(watch_.last_arrival(), Clock::Real()->MonotonicNow());
}

TEST_F(StreamWatchTest, CancelsAWaitOfAnotherThread) {
  cache_.HoldLayersFrom(0);
  absl::Status status;
  std::thread reader([&] { status = stream_->WaitForLayer(0); });
  cache_.WaitForBlockedReader();
  watch_.Cancel();
  reader.join();
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(watch_.last_arrival(), absl::InfinitePast());
}

TEST_F(StreamWatchTest, CancelsADownloadThatStartsLater) {
  stream_.reset();
  watch_.Cancel();  // there is none
  stream_ = watch_.Watch(cache_.StartGet(request_.keys));
  EXPECT_THAT(stream_->WaitForLayer(0), StatusIs(absl::StatusCode::kCancelled));
}

TEST_F(StreamWatchTest, WatchesOneDownloadAfterAnother) {
  stream_.reset();
  stream_ = watch_.Watch(cache_.StartGet(request_.keys));
  ASSERT_THAT(stream_->WaitForLayer(0), IsOk());
  stream_->Cancel();
  EXPECT_THAT(stream_->WaitForLayer(0), StatusIs(absl::StatusCode::kCancelled));
}

// A download to a GPU, of which nothing but the places counts.
class PlacedStream final : public GetStream {
 public:
  std::vector<std::byte*> places;
  int num_releases = 0;

  absl::Status WaitForManifest() override { return absl::OkStatus(); }
  void PlaceFrames(std::span<std::byte* const> named) override {
    places.assign(named.begin(), named.end());
  }
  absl::Status ReleasePlaces() override {
    ++num_releases;
    return absl::InternalError("the GPU goes on writing");
  }
  absl::Status WaitForLayer(int) override { return absl::OkStatus(); }
  absl::Status WaitForAll() override { return absl::OkStatus(); }
  int num_objects() const override { return 1; }
  const ObjectHeader& header(int) const override { return header_; }
  bool is_on_device(int layer) const override { return layer < 1; }
  std::span<const std::byte> frame(int, int) const override { return {}; }
  AlignedBuffer TakeObject(int) override { return AlignedBuffer(1); }
  absl::Status CheckHeld() override { return absl::OkStatus(); }
  uint64_t received_bytes() const override { return 0; }
  void Cancel() override {}

 private:
  ObjectHeader header_;
};

TEST_F(StreamWatchTest, PassesPlacesInDeviceMemoryThrough) {
  stream_.reset();
  auto placed = std::make_unique<PlacedStream>();
  PlacedStream& inner = *placed;
  stream_ = watch_.Watch(std::move(placed));
  std::byte place{};
  const std::vector<std::byte*> places = {&place, nullptr};
  stream_->PlaceFrames(places);
  EXPECT_EQ(inner.places, places);
  EXPECT_TRUE(stream_->is_on_device(0));
  EXPECT_FALSE(stream_->is_on_device(1));
  EXPECT_THAT(stream_->ReleasePlaces(), StatusIs(absl::StatusCode::kInternal));
  EXPECT_EQ(inner.num_releases, 1);
}

}  // namespace
}  // namespace pkv
