#ifndef PKV_TESTS_SUPPORT_FAKE_PAIR_SOURCE_H_
#define PKV_TESTS_SUPPORT_FAKE_PAIR_SOURCE_H_

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "proto/base/sync.h"
#include "proto/transport/nccl/pair_source.h"
#include "tests/support/sealed_object.h"

namespace pkv {

// Sealed objects of a test, and a record of what pairs said of them. Thread-safe; `objects` and
// `refusal` are set before it is used.
class FakePairSource final : public PairSource {
 public:
  std::vector<SealedObject> objects;
  absl::Status refusal;  // of every fetch, when not OK
  std::atomic<int> num_held = 0, num_missed = 0, num_sent = 0, num_broken = 0, num_too_large = 0;
  std::atomic<size_t> num_pairs = 0;

  std::vector<ObjectKey> damaged() const {
    MutexLock lock(&mu_);
    return damaged_;
  }
  // How often a pair ended so.
  int num_ended(PairEnd reason) const {
    MutexLock lock(&mu_);
    return static_cast<int>(std::count(ends_.begin(), ends_.end(), reason));
  }

  absl::StatusOr<std::unique_ptr<PairHold>> Hold(std::span<const ObjectKey> keys,
                                                 v1::PairManifest& manifest) override {
    if (!refusal.ok()) return refusal;
    std::vector<const SealedObject*> held;
    for (const ObjectKey& key : keys) {
      std::string* const head = manifest.add_heads();
      const auto found = std::find_if(objects.begin(), objects.end(),
                                      [&](const auto& object) { return object.key() == key; });
      if (found == objects.end()) continue;
      const auto* bytes = reinterpret_cast<const char*>(found->head().data());
      head->assign(bytes, found->head().size());
      held.push_back(&*found);
    }
    if (held.size() == keys.size()) return std::make_unique<HoldOf>(this, held);
    ++num_missed;
    return absl::NotFoundError("an object is not there");
  }
  void OnDamaged(const ObjectKey& key) override {
    MutexLock lock(&mu_);
    damaged_.push_back(key);
  }
  void OnTooLarge() override { ++num_too_large; }
  void SetNumPairs(size_t pairs) override { num_pairs = pairs; }
  void OnPairEnded(PairEnd reason) override {
    MutexLock lock(&mu_);
    ends_.push_back(reason);
  }

 private:
  class HoldOf final : public PairHold {
   public:
    HoldOf(FakePairSource* source, const std::vector<const SealedObject*>& objects)
        : source_(*source) {
      ++source_.num_held;
      for (const SealedObject* object : objects) {
        spans_.resize(std::max<size_t>(spans_.size(), object->header.num_layers));
        for (int layer = 0; layer < object->header.num_layers; ++layer) {
          const std::span<const std::byte> frame = object->frame(layer);
          spans_[layer].push_back({const_cast<std::byte*>(frame.data()), frame.size()});
        }
      }
      for (const auto& of_layer : spans_) {
        layers_.push_back({.spans = of_layer, .in_host_memory = true});
      }
    }
    ~HoldOf() override { --source_.num_held; }
    std::span<const LayerSpans> layers() override { return layers_; }
    void SendEnded(const absl::Status& status) override {
      ++(status.ok() ? source_.num_sent : source_.num_broken);
    }

   private:
    FakePairSource& source_;
    std::vector<std::vector<DeviceSpan>> spans_;
    std::vector<LayerSpans> layers_;
  };

  mutable Mutex mu_;
  std::vector<ObjectKey> damaged_ ABSL_GUARDED_BY(mu_);
  std::vector<PairEnd> ends_ ABSL_GUARDED_BY(mu_);
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_FAKE_PAIR_SOURCE_H_
