#include "worker/prefill/direct_store.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// Of extents; frames are multiples of it.
constexpr uint64_t kAlignmentBytes = 128;

}  // namespace

// Of the objects of one fetch, which may lie in several groups.
class DirectStore::HoldOf final : public PairHold {
 public:
  struct Part {
    std::byte* first_frame = nullptr;
    uint64_t frame_bytes = 0, layer_bytes = 0;  // from one layer's frame to the next
    int num_layers = 0;
  };
  HoldOf(DirectStore* store, std::vector<uint64_t> offsets, std::vector<Part> parts)
      : store_(*store), offsets_(std::move(offsets)), parts_(std::move(parts)) {}
  ~HoldOf() override {
    // The reader lost interest, or asked for something else.
    if (!has_ended_) store_.metrics_.GetEnded(DirectGet::kShed);
    store_.EndHold(offsets_);
  }

  std::span<const LayerSpans> layers() override {
    if (!layers_.empty()) return layers_;
    for (const Part& part : parts_) {
      spans_.resize(std::max<size_t>(spans_.size(), part.num_layers));
    }
    for (const Part& part : parts_) {
      for (int layer = 0; layer < part.num_layers; ++layer) {
        std::byte* const frame = part.first_frame + layer * part.layer_bytes;
        std::vector<DeviceSpan>& spans = spans_[layer];
        // What lies in one piece is one: a whole prompt makes a list of one span a layer.
        if (!spans.empty() && spans.back().data + spans.back().bytes == frame) {
          spans.back().bytes += part.frame_bytes;
        } else {
          spans.push_back({frame, part.frame_bytes});
        }
      }
    }
    for (const std::vector<DeviceSpan>& of_layer : spans_) layers_.push_back({.spans = of_layer});
    return layers_;
  }

  void SendEnded(const absl::Status& status) override {
    has_ended_ = true;
    store_.metrics_.GetEnded(status.ok() ? DirectGet::kHit : DirectGet::kShed);
    if (!status.ok()) return;
    uint64_t bytes = 0;
    for (const Part& part : parts_) bytes += part.frame_bytes * part.num_layers;
    store_.metrics_.Sent(bytes);
  }

 private:
  DirectStore& store_;
  const std::vector<uint64_t> offsets_;  // of extents, each once
  const std::vector<Part> parts_;
  std::vector<std::vector<DeviceSpan>> spans_;  // by layer
  std::vector<LayerSpans> layers_;
  bool has_ended_ = false;
};

std::span<std::byte> DirectStore::Draft::frame(int object_index, int layer) const {
  PKV_CHECK(layer >= 0 && layer < num_layers_, layer, " of ", num_layers_);
  return {data_ + layer * layer_bytes_ + frame_offsets_[object_index], frame_bytes_[object_index]};
}

absl::StatusOr<std::unique_ptr<DirectStore>> DirectStore::Make(std::shared_ptr<PairCalls> calls,
                                                               uint64_t capacity_bytes,
                                                               DirectMetrics* metrics) {
  PKV_ASSIGN_OR_RETURN(std::byte* const arena, calls->AllocateDevice(capacity_bytes));
  return std::unique_ptr<DirectStore>(
      new DirectStore(std::move(calls), arena, capacity_bytes, metrics));
}

DirectStore::DirectStore(std::shared_ptr<PairCalls> calls, std::byte* arena,
                         uint64_t capacity_bytes, DirectMetrics* metrics)
    : calls_(std::move(calls)), arena_(arena), capacity_bytes_(capacity_bytes), metrics_(*metrics) {
  metrics_.SetCapacity(capacity_bytes);
}

DirectStore::~DirectStore() {
  {
    MutexLock lock(&mu_);
    for (const auto& [offset, extent] : extents_) {
      PKV_CHECK(extent.is_kept && extent.num_holds == 0, offset, " ", extent.num_holds);
    }
  }
  calls_->FreeDevice(arena_);
}

uint64_t DirectStore::FindGap(uint64_t bytes, bool (*ignores)(const Extent&)) const {
  uint64_t end = 0;
  for (const auto& [offset, extent] : extents_) {
    if (ignores != nullptr && ignores(extent)) continue;
    if (offset - end >= bytes) return end;
    end = offset + extent.bytes;
  }
  return capacity_bytes_ - end >= bytes ? end : capacity_bytes_;
}

bool DirectStore::EvictOne() {
  auto oldest = extents_.end();
  for (auto it = extents_.begin(); it != extents_.end(); ++it) {
    if (!CanEvict(it->second)) continue;
    if (oldest == extents_.end() || it->second.last_use < oldest->second.last_use) oldest = it;
  }
  if (oldest == extents_.end()) return false;
  Drop(oldest->first, DirectEviction::kCapacity);
  return true;
}

void DirectStore::Drop(uint64_t offset, DirectEviction reason) {
  Extent& extent = extents_.at(offset);
  for (const Object& object : extent.objects) {
    const auto found = index_.find(object.key);
    if (found != index_.end() && found->second.offset == offset) index_.erase(found);
  }
  extent.is_kept = false;
  metrics_.Evicted(reason);
  if (extent.num_holds == 0) Free(offset);
}

void DirectStore::Free(uint64_t offset) {
  const auto it = extents_.find(offset);
  resident_bytes_ -= it->second.bytes;
  extents_.erase(it);
  metrics_.SetResident(resident_bytes_);
}

std::unique_ptr<DirectStore::Draft> DirectStore::Reserve(std::span<const uint64_t> frame_bytes,
                                                         int num_layers) {
  uint64_t layer_bytes = 0;
  std::vector<uint64_t> offsets;
  for (const uint64_t bytes : frame_bytes) {
    PKV_CHECK(bytes > 0 && bytes % kAlignmentBytes == 0, bytes);
    offsets.push_back(layer_bytes);
    layer_bytes += bytes;
  }
  const uint64_t bytes = layer_bytes * num_layers;
  PKV_CHECK(bytes > 0, frame_bytes.size(), " objects, ", num_layers, " layers");
  uint64_t offset;
  {
    MutexLock lock(&mu_);
    // Nothing is evicted for what will not fit all the same.
    if (FindGap(bytes, &CanEvict) == capacity_bytes_) {
      metrics_.PromptEnded(DirectPrompt::kNoRoom);
      return nullptr;
    }
    while ((offset = FindGap(bytes)) == capacity_bytes_) {
      PKV_CHECK(EvictOne(), bytes, " of ", capacity_bytes_);
    }
    Extent& extent = extents_[offset];
    extent.bytes = bytes;
    extent.layer_bytes = layer_bytes;
    extent.num_layers = num_layers;
    resident_bytes_ += bytes;
    metrics_.SetResident(resident_bytes_);
  }
  std::unique_ptr<Draft> draft(new Draft(this, arena_ + offset, offset));
  draft->num_layers_ = num_layers;
  draft->layer_bytes_ = layer_bytes;
  draft->frame_bytes_.assign(frame_bytes.begin(), frame_bytes.end());
  draft->frame_offsets_ = std::move(offsets);
  return draft;
}

void DirectStore::GiveBack(const Draft& draft) {
  if (draft.is_published_) return;
  metrics_.PromptEnded(DirectPrompt::kFailed);
  MutexLock lock(&mu_);
  Free(draft.offset_);
}

void DirectStore::Publish(std::unique_ptr<Draft> draft,
                          std::span<const ObjectBuilder* const> builders) {
  PKV_CHECK(builders.size() == draft->frame_bytes_.size(), builders.size(), " of ",
            draft->frame_bytes_.size());
  std::vector<Object> objects;
  for (size_t i = 0; i < builders.size(); ++i) {
    const ObjectHeader& header = builders[i]->header();
    PKV_CHECK(header.frame_bytes == draft->frame_bytes_[i], header.frame_bytes);
    const std::span<const std::byte> head = builders[i]->head();
    objects.push_back({header.key(), header.kind == ObjectKind::kBlock ? header.table : Digest{},
                       std::string(reinterpret_cast<const char*>(head.data()), head.size()),
                       draft->frame_bytes_[i], draft->frame_offsets_[i]});
  }
  metrics_.PromptEnded(DirectPrompt::kKept);
  MutexLock lock(&mu_);
  Extent& extent = extents_.at(draft->offset_);
  extent.objects = std::move(objects);
  extent.is_kept = true;
  extent.last_use = ++num_uses_;
  for (size_t i = 0; i < extent.objects.size(); ++i) {
    index_[extent.objects[i].key] = {draft->offset_, i};
  }
  draft->is_published_ = true;
}

std::vector<const DirectStore::Place*> DirectStore::FindAll(std::span<const ObjectKey> keys) {
  absl::flat_hash_set<Digest> tables;
  for (const ObjectKey& key : keys) {
    if (key.kind == ObjectKind::kTable) tables.insert(key.id);
  }
  std::vector<const Place*> places;
  ++num_uses_;
  for (const ObjectKey& key : keys) {
    const Place*& place = places.emplace_back(nullptr);
    const auto found = index_.find(key);
    if (found == index_.end()) continue;
    Extent& extent = extents_.at(found->second.offset);
    const Digest& table = extent.objects[found->second.object_index].table;
    if (!table.IsZero() && !tables.contains(table)) continue;
    extent.last_use = num_uses_;
    place = &found->second;
  }
  return places;
}

bool DirectStore::HasAll(std::span<const ObjectKey> keys) {
  MutexLock lock(&mu_);
  const std::vector<const Place*> places = FindAll(keys);
  return std::find(places.begin(), places.end(), nullptr) == places.end();
}

absl::StatusOr<std::unique_ptr<PairHold>> DirectStore::Hold(std::span<const ObjectKey> keys,
                                                            v1::PairManifest& manifest) {
  std::vector<uint64_t> offsets;
  std::vector<HoldOf::Part> parts;
  {
    MutexLock lock(&mu_);
    const std::vector<const Place*> places = FindAll(keys);
    for (const Place* place : places) {
      std::string* const head = manifest.add_heads();
      if (place == nullptr) continue;
      const Extent& extent = extents_.at(place->offset);
      const Object& object = extent.objects[place->object_index];
      *head = object.head;
      parts.push_back({arena_ + place->offset + object.frame_offset, object.frame_bytes,
                       extent.layer_bytes, extent.num_layers});
      offsets.push_back(place->offset);
    }
    if (parts.size() == keys.size()) {
      std::sort(offsets.begin(), offsets.end());
      offsets.erase(std::unique(offsets.begin(), offsets.end()), offsets.end());
      for (const uint64_t offset : offsets) ++extents_.at(offset).num_holds;
    }
  }
  if (parts.size() < keys.size()) {
    metrics_.GetEnded(DirectGet::kMiss);
    return absl::NotFoundError("an object is not on this GPU any more");
  }
  return std::make_unique<HoldOf>(this, std::move(offsets), std::move(parts));
}

void DirectStore::EndHold(std::span<const uint64_t> offsets) {
  MutexLock lock(&mu_);
  for (const uint64_t offset : offsets) {
    Extent& extent = extents_.at(offset);
    if (--extent.num_holds == 0 && !extent.is_kept) Free(offset);
  }
}

void DirectStore::OnDamaged(const ObjectKey& key) {
  MutexLock lock(&mu_);
  const auto found = index_.find(key);
  if (found != index_.end()) Drop(found->second.offset, DirectEviction::kDamaged);
}

}  // namespace pkv
