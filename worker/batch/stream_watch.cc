#include "worker/batch/stream_watch.h"

#include <utility>

#include "proto/base/clock.h"
#include "proto/base/log.h"

namespace pkv {

class StreamWatch::WatchedStream final : public GetStream {
 public:
  WatchedStream(StreamWatch* watch, std::unique_ptr<GetStream> stream)
      : watch_(*watch), stream_(std::move(stream)) {
    MutexLock lock(&watch_.mu_);
    PKV_CHECK(watch_.stream_ == nullptr);
    watch_.stream_ = stream_.get();
    if (watch_.cancelled_) stream_->Cancel();
  }
  ~WatchedStream() override {
    MutexLock lock(&watch_.mu_);
    watch_.stream_ = nullptr;
  }

  absl::Status WaitForManifest() override { return Note(stream_->WaitForManifest()); }
  void PlaceFrames(std::span<std::byte* const> places) override { stream_->PlaceFrames(places); }
  absl::Status ReleasePlaces() override { return stream_->ReleasePlaces(); }
  absl::Status WaitForLayer(int layer) override {
    return Arrived(Note(stream_->WaitForLayer(layer)));
  }
  absl::Status WaitForAll() override { return Arrived(Note(stream_->WaitForAll())); }
  int num_objects() const override { return stream_->num_objects(); }
  const ObjectHeader& header(int object_index) const override {
    return stream_->header(object_index);
  }
  bool is_on_device(int layer) const override { return stream_->is_on_device(layer); }
  std::span<const std::byte> frame(int object_index, int layer) const override {
    return stream_->frame(object_index, layer);
  }
  AlignedBuffer TakeObject(int object_index) override { return stream_->TakeObject(object_index); }
  absl::Status CheckHeld() override { return Note(stream_->CheckHeld()); }
  uint64_t received_bytes() const override { return stream_->received_bytes(); }
  void Cancel() override { stream_->Cancel(); }

 private:
  absl::Status Note(const absl::Status& status) {
    if (!status.ok()) {
      MutexLock lock(&watch_.mu_);
      watch_.failed_ = true;
    }
    return status;
  }
  absl::Status Arrived(const absl::Status& status) {
    if (status.ok()) {
      const absl::Time now = Clock::Real()->MonotonicNow();
      MutexLock lock(&watch_.mu_);
      watch_.last_arrival_ = now;
    }
    return status;
  }

  StreamWatch& watch_;
  const std::unique_ptr<GetStream> stream_;
};

std::unique_ptr<GetStream> StreamWatch::Watch(std::unique_ptr<GetStream> stream) {
  return std::make_unique<WatchedStream>(this, std::move(stream));
}

void StreamWatch::Cancel() {
  MutexLock lock(&mu_);
  cancelled_ = true;
  if (stream_ != nullptr) stream_->Cancel();
}

absl::Time StreamWatch::last_arrival() const {
  MutexLock lock(&mu_);
  return last_arrival_;
}

bool StreamWatch::failed() const {
  MutexLock lock(&mu_);
  return failed_;
}

}  // namespace pkv
