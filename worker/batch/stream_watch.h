#ifndef PKV_WORKER_BATCH_STREAM_WATCH_H_
#define PKV_WORKER_BATCH_STREAM_WATCH_H_

#include <memory>

#include "absl/time/time.h"
#include "pkv/client/cache_client.h"
#include "proto/base/sync.h"

namespace pkv {

// Keeps a hand on a download that an engine owns: cancels it from another thread, and knows when
// its last layer arrived. Outlives what Watch() returned. Thread-safe.
class StreamWatch {
 public:
  // The same download; at most one at a time is watched. Cancelled at once after Cancel().
  std::unique_ptr<GetStream> Watch(std::unique_ptr<GetStream> stream);

  // The download watched now or later ends soon. Nothing happens when it has ended.
  void Cancel();

  // When the last WaitForLayer() or WaitForAll() that was OK returned; absl::InfinitePast() before.
  absl::Time last_arrival() const;
  // Whether a call of the download has returned an error.
  bool failed() const;

 private:
  class WatchedStream;

  mutable Mutex mu_;
  // Owned by the WatchedStream, which takes it out of here before it ends: Cancel() holds the lock
  // while it calls it.
  GetStream* stream_ ABSL_GUARDED_BY(mu_) = nullptr;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  absl::Time last_arrival_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  bool failed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace pkv

#endif  // PKV_WORKER_BATCH_STREAM_WATCH_H_
