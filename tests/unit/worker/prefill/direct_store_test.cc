#include "worker/prefill/direct_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "proto/metrics/metric_registry.h"
#include "tests/support/fake_pair_calls.h"
#include "tests/support/sealed_object.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_worker.h"

namespace pkv {
namespace {

constexpr int kLayers = 2;
constexpr uint64_t kFrameBytes = 256;  // of a window of one token
constexpr uint64_t kWindowBytes = kLayers * kFrameBytes;

// What a prefill would have made, in host memory.
using Made = std::vector<std::unique_ptr<ObjectBuilder>>;

std::unique_ptr<ObjectBuilder> Build(const ObjectHeader& header, int value) {
  auto builder = std::make_unique<ObjectBuilder>(*ObjectBuilder::Make(header));
  for (int layer = 0; layer < header.num_layers; ++layer) {
    std::ranges::fill(builder->frame(layer), static_cast<std::byte>(value + layer));
  }
  PKV_CHECK(builder->Seal().ok());
  return builder;
}

std::unique_ptr<ObjectBuilder> Window(uint64_t id, int value = 1) {
  ObjectHeader header = TestHeader(ObjectKind::kWindow, id, kLayers);
  header.num_tokens = 1;
  return Build(header, value);
}

std::unique_ptr<ObjectBuilder> Table(int value) {
  ObjectHeader header = TestHeader(ObjectKind::kTable, 1, kLayers);
  header.num_patterns_k = header.num_patterns_v = 2;
  return Build(header, value);
}

std::unique_ptr<ObjectBuilder> Block(uint64_t id, const Digest& table) {
  ObjectHeader header = MakeTestBlock(id, 1, table, kLayers).header;
  auto builder = std::make_unique<ObjectBuilder>(*ObjectBuilder::Make(header));
  PKV_CHECK(builder->Seal().ok());
  return builder;
}

std::vector<std::byte> BytesOf(const LayerSpans& layer) {
  std::vector<std::byte> bytes;
  for (const DeviceSpan& span : layer.spans) {
    bytes.insert(bytes.end(), span.data, span.data + span.bytes);
  }
  return bytes;
}

// Device memory is host memory here.
class DirectStoreTest : public testing::Test {
 protected:
  void Start(uint64_t capacity_bytes) {
    store_ = *DirectStore::Make(calls_, capacity_bytes, &metrics_);
  }
  void TearDown() override {
    store_.reset();
    EXPECT_EQ(calls_->num_alive(), 0);
  }

  static std::vector<uint64_t> FrameBytes(const Made& made) {
    std::vector<uint64_t> bytes;
    for (const auto& object : made) bytes.push_back(object->header().frame_bytes);
    return bytes;
  }
  // As a prefill does it; false: there was no room.
  bool Keep(const Made& made) {
    auto draft = store_->Reserve(FrameBytes(made), kLayers);
    if (draft == nullptr) return false;
    std::vector<const ObjectBuilder*> objects;
    for (size_t i = 0; i < made.size(); ++i) {
      objects.push_back(made[i].get());
      for (int layer = 0; layer < kLayers; ++layer) {
        std::ranges::copy(made[i]->frame(layer), draft->frame(static_cast<int>(i), layer).begin());
      }
    }
    store_->Publish(std::move(draft), objects);
    return true;
  }
  bool KeepWindow(uint64_t id, int value = 1) {
    Made made;
    made.push_back(Window(id, value));
    return Keep(made);
  }
  static ObjectKey WindowKey(uint64_t id) {
    return TestHeader(ObjectKind::kWindow, id, kLayers).key();
  }
  bool Has(uint64_t id) {
    const ObjectKey key = WindowKey(id);
    return store_->HasAll({&key, 1});
  }
  std::unique_ptr<PairHold> HoldWindow(uint64_t id) {
    v1::PairManifest manifest;
    const ObjectKey key = WindowKey(id);
    auto hold = store_->Hold({&key, 1}, manifest);
    return hold.ok() ? *std::move(hold) : nullptr;
  }
  double Metric(const std::string& name,
                const std::vector<std::pair<std::string, std::string>>& labels = {}) {
    return MetricSum(registry_, name, labels);
  }

  MetricRegistry registry_;
  DirectMetrics metrics_{registry_};
  std::shared_ptr<FakePairCalls> calls_ =
      std::make_shared<FakePairCalls>(std::make_shared<FakeLink>(), nullptr);
  std::unique_ptr<DirectStore> store_;
};

TEST_F(DirectStoreTest, SendsWhatWasKeptLayerByLayerInOnePiece) {
  Start(uint64_t{1} << 20);
  Made made;
  made.push_back(Table(1));
  made.push_back(Block(2, made[0]->header().id));
  made.push_back(Window(3, 5));
  ASSERT_TRUE(Keep(made));
  std::vector<ObjectKey> keys;
  for (const auto& object : made) keys.push_back(object->header().key());
  v1::PairManifest manifest;
  const auto hold = store_->Hold(keys, manifest);
  ASSERT_THAT(hold, IsOk());
  const std::span<const LayerSpans> layers = (*hold)->layers();
  ASSERT_EQ(layers.size(), size_t{kLayers});
  const std::byte* next = layers[0].spans[0].data;
  for (int layer = 0; layer < kLayers; ++layer) {
    EXPECT_FALSE(layers[layer].in_host_memory);
    ASSERT_EQ(layers[layer].spans.size(), 1u);
    EXPECT_EQ(layers[layer].spans[0].data, next) << layer;
    next += layers[layer].spans[0].bytes;
    std::vector<std::byte> expected;
    for (const auto& object : made) {
      const std::span<const std::byte> frame = object->frame(layer);
      expected.insert(expected.end(), frame.begin(), frame.end());
    }
    EXPECT_EQ(BytesOf(layers[layer]), expected) << layer;
  }
  for (size_t i = 0; i < made.size(); ++i) {
    EXPECT_TRUE(std::ranges::equal(std::as_bytes(std::span(manifest.heads(i))), made[i]->head()));
  }
  (*hold)->SendEnded(absl::OkStatus());
  EXPECT_EQ(Metric("pkv_direct_sent_bytes_total"), Metric("pkv_direct_resident_bytes"));
  EXPECT_EQ(Metric("pkv_direct_gets_total", {{"result", "hit"}}), 1);
}

TEST_F(DirectStoreTest, WhatWasNotKeptIsNotFoundAndSaidByAnEmptyHead) {
  Start(uint64_t{1} << 20);
  ASSERT_TRUE(KeepWindow(1));
  v1::PairManifest manifest;
  const std::vector<ObjectKey> keys = {WindowKey(1), WindowKey(2)};
  EXPECT_THAT(store_->Hold(keys, manifest), StatusIs(absl::StatusCode::kNotFound));
  ASSERT_EQ(manifest.heads_size(), 2);
  EXPECT_NE(manifest.heads(0), "");
  EXPECT_EQ(manifest.heads(1), "");
  EXPECT_FALSE(store_->HasAll(keys));
  EXPECT_EQ(Metric("pkv_direct_gets_total", {{"result", "miss"}}), 1);
}

TEST_F(DirectStoreTest, FindsObjectsOfSeveralPrompts) {
  Start(uint64_t{1} << 20);
  ASSERT_TRUE(KeepWindow(1, 7));
  ASSERT_TRUE(KeepWindow(2, 9));
  v1::PairManifest manifest;
  const std::vector<ObjectKey> keys = {WindowKey(2), WindowKey(1)};
  const auto hold = store_->Hold(keys, manifest);
  ASSERT_THAT(hold, IsOk());
  const std::vector<std::byte> bytes = BytesOf((*hold)->layers()[1]);
  ASSERT_EQ(bytes.size(), 2 * kFrameBytes);
  EXPECT_EQ(bytes[0], std::byte{10});
  EXPECT_EQ(bytes[kFrameBytes], std::byte{8});
}

TEST_F(DirectStoreTest, MakesRoomByTheLeastRecentlyUsed) {
  Start(3 * kWindowBytes);
  for (const uint64_t id : {1, 2, 3}) ASSERT_TRUE(KeepWindow(id));
  EXPECT_TRUE(Has(1)) << "a use";
  ASSERT_TRUE(KeepWindow(4));
  EXPECT_TRUE(Has(1));
  EXPECT_FALSE(Has(2));
  EXPECT_TRUE(Has(3) && Has(4));
  EXPECT_EQ(Metric("pkv_direct_evictions_total", {{"reason", "capacity"}}), 1);
  EXPECT_EQ(Metric("pkv_direct_resident_bytes"), 3 * kWindowBytes);
}

TEST_F(DirectStoreTest, MakesRoomInOnePieceAndReusesEveryByte) {
  Start(4 * kWindowBytes);
  for (const uint64_t id : {1, 2, 3, 4}) ASSERT_TRUE(KeepWindow(id));
  EXPECT_TRUE(Has(1) && Has(3)) << "uses";
  Made made;
  made.push_back(Window(5));
  made.push_back(Window(6));
  ASSERT_TRUE(Keep(made)) << "2 and 4 go first, and then 1, which lies beside 2";
  EXPECT_FALSE(Has(1) || Has(2) || Has(4));
  EXPECT_TRUE(Has(3) && Has(5) && Has(6));
  ASSERT_TRUE(KeepWindow(7));
  EXPECT_TRUE(Has(3) && Has(5) && Has(7)) << "where 4 was";
}

TEST_F(DirectStoreTest, WhatIsHeldStaysAndLeavesNoRoom) {
  Start(2 * kWindowBytes);
  ASSERT_TRUE(KeepWindow(1, 7));
  ASSERT_TRUE(KeepWindow(2));
  const auto first = HoldWindow(1);
  auto second = HoldWindow(2);
  EXPECT_FALSE(KeepWindow(3));
  EXPECT_EQ(Metric("pkv_direct_prompts_total", {{"result", "no_room"}}), 1);
  EXPECT_TRUE(Has(1) && Has(2));
  second.reset();
  EXPECT_TRUE(KeepWindow(3));
  EXPECT_FALSE(Has(2));
  EXPECT_EQ(first->layers()[0].spans[0].data[0], std::byte{7});
}

TEST_F(DirectStoreTest, WhatIsBeingFilledIsNotFoundAndNotEvicted) {
  Start(kWindowBytes);
  const std::vector<uint64_t> bytes = {kFrameBytes};
  auto draft = store_->Reserve(bytes, kLayers);
  ASSERT_NE(draft, nullptr);
  EXPECT_FALSE(Has(1));
  EXPECT_FALSE(KeepWindow(2));
  draft.reset();
  EXPECT_EQ(Metric("pkv_direct_resident_bytes"), 0);
  EXPECT_EQ(Metric("pkv_direct_prompts_total", {{"result", "failed"}}), 1);
  EXPECT_TRUE(KeepWindow(2));
}

TEST_F(DirectStoreTest, APromptThatIsTooLargeEvictsNothing) {
  Start(kWindowBytes);
  ASSERT_TRUE(KeepWindow(1));
  Made made;
  made.push_back(Window(2));
  made.push_back(Window(3));
  EXPECT_FALSE(Keep(made));
  EXPECT_TRUE(Has(1));
}

TEST_F(DirectStoreTest, TheNewestOfAKeyIsFoundAndTheOlderGoesLater) {
  Start(2 * kWindowBytes);
  ASSERT_TRUE(KeepWindow(1, 7));
  const auto old = HoldWindow(1);
  ASSERT_TRUE(KeepWindow(1, 9));
  EXPECT_EQ(HoldWindow(1)->layers()[0].spans[0].data[0], std::byte{9});
  EXPECT_EQ(old->layers()[0].spans[0].data[0], std::byte{7});
}

TEST_F(DirectStoreTest, AfterTheOlderOfAKeyIsEvictedTheNewestIsStillFound) {
  Start(2 * kWindowBytes);
  ASSERT_TRUE(KeepWindow(1, 7));
  ASSERT_TRUE(KeepWindow(1, 9));
  ASSERT_TRUE(KeepWindow(2));
  EXPECT_TRUE(Has(1));
  EXPECT_EQ(HoldWindow(1)->layers()[0].spans[0].data[0], std::byte{9});
}

// Two prefills of one prompt may mine two tables.
TEST_F(DirectStoreTest, ABlockOfATableThatWasNotAskedForIsNotFound) {
  Start(uint64_t{1} << 20);
  std::vector<ObjectKey> keys;
  for (const int value : {1, 5}) {
    Made made;
    made.push_back(Table(value));
    made.push_back(Block(9, made[0]->header().id));
    keys = {made[0]->header().key(), made[1]->header().key()};
    ASSERT_TRUE(Keep(made));
    EXPECT_TRUE(store_->HasAll(keys));
  }
  keys[0] = Table(1)->header().key();
  EXPECT_FALSE(store_->HasAll(keys)) << "the block found is of the other";
}

TEST_F(DirectStoreTest, DamageDropsTheWholePromptOnceItIsNotHeldAnyMore) {
  Start(kWindowBytes);
  ASSERT_TRUE(KeepWindow(1, 7));
  auto hold = HoldWindow(1);
  store_->OnDamaged(WindowKey(1));
  store_->OnDamaged(WindowKey(1));
  store_->OnDamaged(WindowKey(2));
  EXPECT_FALSE(Has(1));
  EXPECT_EQ(hold->layers()[0].spans[0].data[0], std::byte{7});
  EXPECT_EQ(Metric("pkv_direct_resident_bytes"), kWindowBytes);
  hold.reset();
  EXPECT_EQ(Metric("pkv_direct_resident_bytes"), 0);
  EXPECT_EQ(Metric("pkv_direct_evictions_total", {{"reason", "damaged"}}), 1);
}

TEST_F(DirectStoreTest, ATransferThatBreaksIsCounted) {
  Start(kWindowBytes);
  ASSERT_TRUE(KeepWindow(1));
  HoldWindow(1)->SendEnded(absl::UnavailableError("the peer is gone"));
  EXPECT_EQ(Metric("pkv_direct_gets_total", {{"result", "shed"}}), 1);
  EXPECT_EQ(Metric("pkv_direct_sent_bytes_total"), 0);
  EXPECT_TRUE(Has(1));
}

}  // namespace
}  // namespace pkv
