#include "kvstore/service/store_pair_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/fake_pair_calls.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/kvstore/service/service_fixture.h"

namespace pkv {
namespace {

class StorePairSourceTest : public ServiceFixture {
 protected:
  void SetUp() override {
    MakeLog();
    MakeService(64);
    for (uint64_t id = 1; id <= 3; ++id) {
      objects_.push_back(MakeTestWindow(id, static_cast<uint32_t>(id), static_cast<int>(id)));
      ASSERT_THAT(Put(objects_.back()), IsOk());
      keys_.push_back(objects_.back().key());
    }
  }
  absl::StatusOr<std::unique_ptr<StorePairSource>> Make() {
    return StorePairSource::Make(calls_, store_.get(), parts_.disk, &metrics_, Clock::Real());
  }
  uint64_t Pinned() const { return store_->stats().pinned_bytes; }
  static bool IsHead(const std::string& head, const SealedObject& object) {
    return std::ranges::equal(std::as_bytes(std::span(head)), object.head());
  }

  std::shared_ptr<FakePairCalls> calls_ =
      std::make_shared<FakePairCalls>(std::make_shared<FakeLink>(), nullptr);
  std::vector<SealedObject> objects_;
  std::vector<ObjectKey> keys_;
  v1::PairManifest manifest_;
};

TEST_F(StorePairSourceTest, LetsTheGpuReadTheStoreAsLongAsItStands) {
  {
    const auto source = Make();
    ASSERT_THAT(source, IsOk());
    EXPECT_EQ(calls_->num_alive(), 1);
  }
  EXPECT_EQ(calls_->num_alive(), 0);
}

TEST_F(StorePairSourceTest, LogsWhatItPinsBeforeAndAfter) {
  testing::internal::CaptureStderr();
  ASSERT_THAT(Make(), IsOk());
  const std::string bytes = absl::StrCat("bytes=", store_->memory().size());
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              testing::AllOf(testing::HasSubstr("pinning memory for the GPU"),
                             testing::HasSubstr("pinned memory for the GPU"),
                             testing::HasSubstr(bytes), testing::HasSubstr("seconds=")));
}

TEST_F(StorePairSourceTest, SaysWhyItCannotPin) {
  calls_->faults.register_host = absl::ResourceExhaustedError("no memory to pin");
  EXPECT_THAT(Make(), StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(StorePairSourceTest, BringsInWhatIsOnDisk) {
  MoveToDisk(objects_[1]);
  const auto source = *Make();
  const auto hold = source->Hold(keys_, manifest_);
  ASSERT_THAT(hold, IsOk());
  ASSERT_EQ(manifest_.heads_size(), 3);
  EXPECT_TRUE(IsHead(manifest_.heads(1), objects_[1]));
  EXPECT_EQ(Metric("pkv_tier_hits_total{tier=\"ssd\"}"), 1);
  EXPECT_EQ(Metric("pkv_tier_hits_total{tier=\"dram\"}"), 2);
}

TEST_F(StorePairSourceTest, PinsWhatItListsUntilTheHoldIsGone) {
  const auto source = *Make();
  {
    const auto hold = source->Hold(keys_, manifest_);
    ASSERT_THAT(hold, IsOk());
    ASSERT_EQ(manifest_.heads_size(), 3);
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(IsHead(manifest_.heads(i), objects_[i])) << i;
    EXPECT_GT(Pinned(), 0u);
    const std::span<const LayerSpans> layers = (*hold)->layers();
    ASSERT_EQ(layers.size(), 2u);
    EXPECT_TRUE(layers[1].in_host_memory);
    ASSERT_EQ(layers[1].spans.size(), 3u);
    const DeviceSpan& span = layers[1].spans[2];
    EXPECT_TRUE(std::ranges::equal(std::span(span.data, span.bytes), objects_[2].frame(1)));
    (*hold)->SendEnded(absl::OkStatus());
  }
  EXPECT_EQ(Pinned(), 0u);
  uint64_t frame_bytes = 0;
  for (const SealedObject& object : objects_) frame_bytes += 2 * object.header.frame_bytes;
  EXPECT_EQ(Metric("pkv_payload_bytes_total{direction=\"out\",transport=\"nccl\"}"), frame_bytes);
  EXPECT_EQ(Metric("pkv_block_gets_total{result=\"hit\"}"), 3);
}

TEST_F(StorePairSourceTest, CountsWhatWasNotSent) {
  const auto source = *Make();
  (*source->Hold(keys_, manifest_))->SendEnded(absl::UnavailableError("the peer is gone"));
  EXPECT_EQ(Metric("pkv_block_gets_total{result=\"shed\"}"), 3);
  EXPECT_EQ(Metric("pkv_payload_bytes_total{direction=\"out\",transport=\"nccl\"}"), 0);
}

TEST_F(StorePairSourceTest, WhatIsMissingHasNoHeadAndNothingIsHeld) {
  const auto source = *Make();
  keys_.push_back(MakeTestWindow(9, 9).key());
  EXPECT_THAT(source->Hold(keys_, manifest_), StatusIs(absl::StatusCode::kNotFound));
  ASSERT_EQ(manifest_.heads_size(), 4);
  EXPECT_TRUE(IsHead(manifest_.heads(0), objects_[0]));
  EXPECT_TRUE(manifest_.heads(3).empty());
  EXPECT_EQ(Pinned(), 0u);
  EXPECT_EQ(Metric("pkv_block_gets_total{result=\"miss\"}"), 1);
}

TEST_F(StorePairSourceTest, AHeadThatIsDamagedIsToldAndDropped) {
  const auto source = *Make();
  {
    const Lease lease = store_->Find(keys_[1]);
    const_cast<std::byte&>(lease.head()[40]) ^= std::byte{1};
  }
  EXPECT_THAT(source->Hold(keys_, manifest_), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(Pinned(), 0u);
  EXPECT_FALSE(Has(objects_[1]));
}

TEST_F(StorePairSourceTest, DamageThatIsNoneLeavesTheObject) {
  const auto source = *Make();
  source->OnDamaged(keys_[1]);
  EXPECT_TRUE(Has(objects_[1]));
}

TEST_F(StorePairSourceTest, DamageInTheStoresMemoryDropsTheObject) {
  const auto source = *Make();
  {
    const Lease lease = store_->Find(keys_[1]);
    const_cast<std::byte&>(lease.frame(1)[3]) ^= std::byte{1};
  }
  source->OnDamaged(keys_[1]);
  EXPECT_FALSE(Has(objects_[1]));
  EXPECT_EQ(Metric("pkv_integrity_failures_total{stage=\"dram\"}"), 1);
}

}  // namespace
}  // namespace pkv
