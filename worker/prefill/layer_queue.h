#ifndef PKV_WORKER_PREFILL_LAYER_QUEUE_H_
#define PKV_WORKER_PREFILL_LAYER_QUEUE_H_

#include <deque>

#include "proto/base/sync.h"

namespace pkv {

// Hands finished layers from the model's thread to the encoder's. Holds at most the model's layers.
// Thread-safe.
class LayerQueue {
 public:
  void Push(int layer) {
    {
      MutexLock lock(&mu_);
      layers_.push_back(layer);
    }
    changed_.Signal();
  }

  // No more layers will come.
  void Close() {
    {
      MutexLock lock(&mu_);
      closed_ = true;
    }
    changed_.Signal();
  }

  // The next layer, waiting for it; -1 once closed and empty.
  int Pop() {
    MutexLock lock(&mu_);
    while (layers_.empty() && !closed_) changed_.Wait(&mu_);
    if (layers_.empty()) return -1;
    const int layer = layers_.front();
    layers_.pop_front();
    return layer;
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::deque<int> layers_ ABSL_GUARDED_BY(mu_);
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace pkv

#endif  // PKV_WORKER_PREFILL_LAYER_QUEUE_H_
