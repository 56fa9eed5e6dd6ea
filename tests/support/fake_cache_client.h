#ifndef PKV_TESTS_SUPPORT_FAKE_CACHE_CLIENT_H_
#define PKV_TESTS_SUPPORT_FAKE_CACHE_CLIENT_H_

// A CacheClient that keeps objects in memory and keeps to the contract of cache_client.h: lookups
// are contiguous, keys are write-once, a block needs its table and its parent's, every byte is
// verified on arrival.
// What goes wrong is scripted.

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "pkv/block/object_view.h"
#include "pkv/client/cache_client.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/base/sync.h"

namespace pkv {

enum class CacheCall {
  kLookup,
  kStartGet,
  kStartDeviceGet,
  kStat,
  kDelete,
  kStartPut,
  kWriteLayer,
  kCommit,
  kPut
};

// Thread-safe.
class FakeCacheClient : public CacheClient {
 public:
  // Called before each call takes effect, without a lock held, from the caller's thread: may fail
  // the call, or change what is stored (a race, an eviction).
  using Script = std::function<absl::Status(CacheCall)>;
  void set_script(Script script) {
    MutexLock lock(&mu_);
    script_ = std::move(script);
  }
  void set_address(std::string address) { address_ = std::move(address); }  // before it is used
  // The cache is away: every call fails with this.
  void FailAll(const absl::Status& status) {
    set_script([status](CacheCall) { return status; });
  }
  // One bit of this frame arrives flipped in every later get.
  void Damage(const ObjectKey& key, int layer) {
    MutexLock lock(&mu_);
    damaged_.insert({key, layer});
  }
  // Puts of this key are refused.
  void Refuse(const ObjectKey& key, const absl::Status& status) {
    MutexLock lock(&mu_);
    refused_[key] = status;
  }
  // Layers from `layer` on do not arrive until ReleaseLayers().
  void HoldLayersFrom(int layer) {
    MutexLock lock(&mu_);
    held_from_ = layer;
  }
  void ReleaseLayers() {
    MutexLock lock(&mu_);
    held_from_ = kNoLayer;
    changed_.SignalAll();
  }
  // From now on no stream holds what it reads: as a server that takes its memory back.
  void TakeBack() {
    MutexLock lock(&mu_);
    taken_back_ = true;
  }
  // Returns once a reader waits for a layer that is held.
  void WaitForBlockedReader() {
    MutexLock lock(&mu_);
    while (num_blocked_ == 0) changed_.Wait(&mu_);
  }

  // What is stored, for the test to look at and to change.
  std::vector<ObjectKey> Keys(ObjectKind kind) {
    MutexLock lock(&mu_);
    std::vector<ObjectKey> keys;
    for (const auto& [key, bytes] : objects_) {
      if (key.kind == kind) keys.push_back(key);
    }
    return keys;
  }
  std::vector<std::byte> Bytes(const ObjectKey& key) {
    MutexLock lock(&mu_);
    const auto it = objects_.find(key);
    return it == objects_.end() ? std::vector<std::byte>() : it->second;
  }
  void Erase(const ObjectKey& key) {
    MutexLock lock(&mu_);
    objects_.erase(key);
  }
  void Clear() {
    MutexLock lock(&mu_);
    objects_.clear();
  }
  // Sealed objects, whatever is there already.
  void Insert(std::span<const std::byte> bytes) {
    const absl::StatusOr<ObjectHeader> header = ParseHeader(bytes);
    PKV_CHECK(header.ok(), header.status().ToString());
    MutexLock lock(&mu_);
    objects_[header->key()].assign(bytes.begin(), bytes.end());
  }
  int calls(CacheCall call) {
    MutexLock lock(&mu_);
    return num_calls_[call];
  }

  absl::StatusOr<LookupResult> Lookup(std::span<const Digest> prefix_ids,
                                      std::span<const Variant> variants) override {
    PKV_RETURN_IF_ERROR(Begin(CacheCall::kLookup));
    MutexLock lock(&mu_);
    LookupResult best;
    for (size_t v = 0; v < variants.size(); ++v) {
      LookupResult found;
      found.variant_index = static_cast<int>(v);
      for (const Digest& id : prefix_ids) {
        const auto it = objects_.find({ObjectKind::kBlock, id, variants[v]});
        if (it == objects_.end()) break;
        const ObjectHeader header = *ParseHeader(it->second);
        ++found.num_blocks;
        found.bytes += it->second.size();
        auto& tables = found.table_ids;
        const bool named = std::find(tables.begin(), tables.end(), header.table) != tables.end();
        if (!header.table.IsZero() && !named) tables.push_back(header.table);
      }
      found.blocks_per_variant = best.blocks_per_variant;
      found.blocks_per_variant.push_back(found.num_blocks);
      if (v == 0 || found.num_blocks > best.num_blocks) best = found;
      best.blocks_per_variant = found.blocks_per_variant;
    }
    return best;
  }

  std::unique_ptr<GetStream> StartGet(std::span<const ObjectKey> keys) override {
    return Start(CacheCall::kStartGet, keys);
  }
  // To the host's memory all the same.
  std::unique_ptr<GetStream> StartDeviceGet(std::span<const ObjectKey> keys,
                                            absl::string_view direct_server) override {
    {
      MutexLock lock(&mu_);
      last_direct_server_ = std::string(direct_server);
    }
    return Start(CacheCall::kStartDeviceGet, keys);
  }

  // What the last StartDeviceGet was told.
  std::string last_direct_server() {
    MutexLock lock(&mu_);
    return last_direct_server_;
  }

  absl::StatusOr<std::vector<AlignedBuffer>> Get(std::span<const ObjectKey> keys) override {
    const std::unique_ptr<GetStream> stream = StartGet(keys);
    PKV_RETURN_IF_ERROR(stream->WaitForAll());
    std::vector<AlignedBuffer> objects;
    for (int i = 0; i < stream->num_objects(); ++i) objects.push_back(stream->TakeObject(i));
    return objects;
  }

  absl::StatusOr<std::unique_ptr<PutStream>> StartPut(
      std::span<const ObjectDescriptor> objects) override {
    PKV_RETURN_IF_ERROR(Begin(CacheCall::kStartPut));
    auto stream = std::make_unique<Upload>(this);
    MutexLock lock(&mu_);
    for (const ObjectDescriptor& object : objects) {
      const auto refusal = refused_.find(object.key);
      stream->decisions_.push_back(refusal != refused_.end()         ? PutDecision::kRefused
                                   : objects_.count(object.key) != 0 ? PutDecision::kPresent
                                                                     : PutDecision::kWanted);
      stream->refusals.push_back(refusal == refused_.end() ? absl::OkStatus() : refusal->second);
      stream->outcomes.push_back({absl::CancelledError("not committed"), false});
    }
    stream->descriptors.assign(objects.begin(), objects.end());
    stream->frames.resize(objects.size());
    return stream;
  }

  std::vector<PutOutcome> Put(std::span<const std::span<const std::byte>> objects) override {
    std::vector<PutOutcome> outcomes;
    const absl::Status status = Begin(CacheCall::kPut);
    for (const std::span<const std::byte> bytes : objects) {
      outcomes.push_back(status.ok() ? Store(bytes) : PutOutcome{status, false});
    }
    return outcomes;
  }

  absl::StatusOr<std::vector<ObjectStat>> Stat(std::span<const ObjectKey> keys) override {
    PKV_RETURN_IF_ERROR(Begin(CacheCall::kStat));
    MutexLock lock(&mu_);
    std::vector<ObjectStat> stats;
    for (const ObjectKey& key : keys) {
      ObjectStat& stat = stats.emplace_back();
      const auto it = objects_.find(key);
      if (it == objects_.end()) continue;
      stat.present = true;
      stat.object_bytes = it->second.size();
      const int num_layers = ParseHeader(it->second)->num_layers;
      stat.head.assign(it->second.begin(), it->second.begin() + FramesOffset(num_layers));
    }
    return stats;
  }

  absl::StatusOr<int> Delete(std::span<const ObjectKey> keys) override {
    PKV_RETURN_IF_ERROR(Begin(CacheCall::kDelete));
    MutexLock lock(&mu_);
    int deleted = 0;
    for (const ObjectKey& key : keys) deleted += static_cast<int>(objects_.erase(key));
    return deleted;
  }

  absl::StatusOr<ServerStats> Stats() override { return ServerStats(); }
  absl::Status Drain() override { return absl::OkStatus(); }
  ClientCounters counters() const override { return {}; }
  std::string address() const override { return address_; }

 private:
  static constexpr int kNoLayer = kMaxLayers;

  struct Download final : GetStream {
    explicit Download(FakeCacheClient* cache_in) : cache(cache_in) {}

    absl::Status WaitForManifest() override { return status; }
    absl::Status WaitForLayer(int layer) override {
      PKV_RETURN_IF_ERROR(status);
      PKV_RETURN_IF_ERROR(cache->WaitUntilArrived(layer, cancelled));
      for (size_t i = 0; i < objects.size(); ++i) {
        if (layer >= headers[i].num_layers) continue;
        PKV_ASSIGN_OR_RETURN(const ObjectView view, ObjectView::Parse(objects[i].span()));
        PKV_RETURN_IF_ERROR(view.VerifyLayer(layer));
      }
      num_arrived = std::max(num_arrived, layer + 1);
      return absl::OkStatus();
    }
    absl::Status WaitForAll() override {
      PKV_RETURN_IF_ERROR(status);
      int num_layers = 0;
      for (const ObjectHeader& header : headers) {
        num_layers = std::max<int>(num_layers, header.num_layers);
      }
      for (int layer = 0; layer < num_layers; ++layer) PKV_RETURN_IF_ERROR(WaitForLayer(layer));
      return absl::OkStatus();
    }
    int num_objects() const override { return static_cast<int>(objects.size()); }
    const ObjectHeader& header(int i) const override { return headers[i]; }
    std::span<const std::byte> frame(int i, int layer) const override {
      PKV_CHECK(layer < num_arrived, layer, " was not waited for");
      return ObjectView::Parse(objects[i].span())->frame(layer);
    }
    AlignedBuffer TakeObject(int i) override { return std::move(objects[i]); }
    absl::Status CheckHeld() override {
      MutexLock lock(&cache->mu_);
      return cache->taken_back_ ? absl::AbortedError("memory taken back") : absl::OkStatus();
    }
    uint64_t received_bytes() const override {
      uint64_t bytes = 0;
      for (const ObjectHeader& header : headers) {
        bytes += header.frame_bytes * std::min<int>(num_arrived, header.num_layers);
      }
      return bytes;
    }
    void Cancel() override {
      MutexLock lock(&cache->mu_);
      cancelled = true;
      cache->changed_.SignalAll();
    }

    FakeCacheClient* const cache;
    absl::Status status;
    std::vector<AlignedBuffer> objects;
    std::vector<ObjectHeader> headers;
    int num_arrived = 0;
    bool cancelled = false;  // guarded by cache->mu_
  };

  struct Upload final : PutStream {
    explicit Upload(FakeCacheClient* cache_in) : cache(cache_in) {}

    const std::vector<PutDecision>& decisions() const override { return decisions_; }
    absl::Status refusal(int i) const override { return refusals[i]; }
    absl::Status WriteLayer(int layer, std::span<const std::span<const std::byte>> in) override {
      PKV_RETURN_IF_ERROR(cache->Begin(CacheCall::kWriteLayer));
      for (size_t i = 0; i < in.size(); ++i) {
        if (in[i].empty() || decisions_[i] != PutDecision::kWanted) continue;
        PKV_CHECK(in[i].size() == descriptors[i].frame_bytes, in[i].size());
        PKV_CHECK(frames[i].size() == layer * in[i].size(), "layer ", layer, " is not the next");
        frames[i].insert(frames[i].end(), in[i].begin(), in[i].end());
      }
      return absl::OkStatus();
    }
    absl::Status Commit(int i, std::span<const std::byte> head) override {
      PKV_RETURN_IF_ERROR(cache->Begin(CacheCall::kCommit));
      if (decisions_[i] == PutDecision::kPresent) outcomes[i] = {absl::OkStatus(), false};
      if (decisions_[i] == PutDecision::kRefused) outcomes[i] = {refusals[i], false};
      if (decisions_[i] != PutDecision::kWanted) return absl::OkStatus();
      std::vector<std::byte> bytes(head.begin(), head.end());
      bytes.insert(bytes.end(), frames[i].begin(), frames[i].end());
      outcomes[i] = cache->Store(bytes);
      const absl::StatusOr<ObjectHeader> header = ParseHeader(bytes);
      PKV_CHECK(header.ok() && header->key() == descriptors[i].key, "committed under another key");
      return absl::OkStatus();
    }
    std::vector<PutOutcome> Finish() override { return outcomes; }
    void Cancel() override {}

    FakeCacheClient* const cache;
    std::vector<PutDecision> decisions_;
    std::vector<absl::Status> refusals;
    std::vector<ObjectDescriptor> descriptors;
    std::vector<std::vector<std::byte>> frames;
    std::vector<PutOutcome> outcomes;
  };

  std::unique_ptr<GetStream> Start(CacheCall call, std::span<const ObjectKey> keys) {
    absl::Status status = Begin(call);
    auto stream = std::make_unique<Download>(this);
    MutexLock lock(&mu_);
    for (const ObjectKey& key : keys) {
      const auto it = objects_.find(key);
      if (it == objects_.end()) {
        status.Update(absl::NotFoundError(absl::StrCat(key.id.ToShortHex(), " is not stored")));
        break;
      }
      stream->objects.emplace_back(it->second.size());
      std::copy(it->second.begin(), it->second.end(), stream->objects.back().data());
      stream->headers.push_back(*ParseHeader(it->second));
      const ObjectHeader& header = stream->headers.back();
      for (int layer = 0; layer < header.num_layers; ++layer) {
        if (damaged_.count({key, layer}) == 0) continue;
        const uint64_t offset = FramesOffset(header.num_layers) + layer * header.frame_bytes;
        stream->objects.back().data()[offset] ^= std::byte{1};
      }
    }
    stream->status = status;
    return stream;
  }

  absl::Status Begin(CacheCall call) {
    Script script;
    {
      MutexLock lock(&mu_);
      ++num_calls_[call];
      script = script_;
    }
    return script ? script(call) : absl::OkStatus();
  }

  absl::Status WaitUntilArrived(int layer, const bool& cancelled) {
    MutexLock lock(&mu_);
    if (layer >= held_from_) {
      ++num_blocked_;
      changed_.SignalAll();
      while (layer >= held_from_ && !cancelled) changed_.Wait(&mu_);
      --num_blocked_;
    }
    return cancelled ? absl::CancelledError("get cancelled") : absl::OkStatus();
  }

  PutOutcome Store(std::span<const std::byte> bytes) {
    const absl::StatusOr<ObjectView> view = ObjectView::Parse(bytes);
    if (!view.ok()) return {view.status(), false};
    if (const absl::Status verified = view->VerifyAll(); !verified.ok()) return {verified, false};
    const ObjectHeader& header = view->header();
    MutexLock lock(&mu_);
    const ObjectKey table{ObjectKind::kTable, header.table, header.variant()};
    if (!header.table.IsZero() && objects_.count(table) == 0) {
      return {absl::FailedPreconditionError("its pattern table is not stored"), false};
    }
    const auto parent = objects_.find({ObjectKind::kBlock, header.parent, header.variant()});
    if (!header.table.IsZero() && parent != objects_.end() &&
        ParseHeader(parent->second)->table != header.table) {
      return {absl::AlreadyExistsError("the block before it belongs to another chain"), false};
    }
    std::vector<std::byte>& stored = objects_[header.key()];
    if (stored.empty()) {
      stored.assign(bytes.begin(), bytes.end());
      return {absl::OkStatus(), true};
    }
    if (std::equal(stored.begin(), stored.end(), bytes.begin(), bytes.end())) {
      return {absl::OkStatus(), false};
    }
    return {absl::AlreadyExistsError("different bytes stand under this key"), false};
  }

  Mutex mu_;
  std::string last_direct_server_ ABSL_GUARDED_BY(mu_);
  CondVar changed_;
  std::string address_;  // constant once used
  Script script_ ABSL_GUARDED_BY(mu_);
  std::map<ObjectKey, std::vector<std::byte>> objects_ ABSL_GUARDED_BY(mu_);
  std::set<std::pair<ObjectKey, int>> damaged_ ABSL_GUARDED_BY(mu_);
  std::map<ObjectKey, absl::Status> refused_ ABSL_GUARDED_BY(mu_);
  std::map<CacheCall, int> num_calls_ ABSL_GUARDED_BY(mu_);
  int held_from_ ABSL_GUARDED_BY(mu_) = kNoLayer;
  int num_blocked_ ABSL_GUARDED_BY(mu_) = 0;
  bool taken_back_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_FAKE_CACHE_CLIENT_H_
