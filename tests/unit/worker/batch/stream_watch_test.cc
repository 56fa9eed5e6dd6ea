#include "worker/batch/stream_watch.h"

#include <gtest/gtest.h>

#include <thread>

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

}  // namespace
}  // namespace pkv
