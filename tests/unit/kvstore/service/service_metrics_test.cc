#include "kvstore/service/service_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"
#include "tests/unit/kvstore/service/service_fixture.h"

namespace pkv {
namespace {

class ServiceMetricsTest : public ServiceFixture {
 protected:
  void SetUp() override { MakeService(4); }
};

TEST_F(ServiceMetricsTest, ShowsEverySeriesAtZeroFromTheStart) {
  for (const char* series : {"pkv_rpc_requests_total{code=\"OK\",method=\"Get\"}",
                             "pkv_rpc_requests_total{code=\"DEADLINE_EXCEEDED\",method=\"Put\"}",
                             "pkv_rpc_duration_seconds_count{method=\"Lookup\"}",
                             "pkv_rpc_inflight{method=\"Put\"}",
                             "pkv_rpc_rejected_total{reason=\"draining\"}",
                             "pkv_block_puts_total{result=\"conflict\"}",
                             "pkv_block_gets_total{result=\"corrupt\"}",
                             "pkv_lookup_tokens_total",
                             "pkv_lookup_hit_tokens_total",
                             "pkv_payload_bytes_total{direction=\"out\",transport=\"grpc\"}",
                             "pkv_logical_bytes_total{direction=\"in\"}",
                             "pkv_transfer_bytes_count{direction=\"in\"}",
                             "pkv_transfer_bytes_sum{direction=\"out\"}",
                             "pkv_stall_seconds_total{cause=\"peer_flow_control\"}",
                             "pkv_tier_hits_total{tier=\"dram\"}",
                             "pkv_evictions_total{reason=\"capacity\",tier=\"dram\"}",
                             "pkv_evicted_bytes_total{reason=\"integrity\",tier=\"dram\"}",
                             "pkv_eviction_age_seconds_count{tier=\"dram\"}",
                             "pkv_integrity_failures_total{stage=\"dram\"}",
                             "pkv_accept_errors_total",
                             "pkv_draining"}) {
    EXPECT_EQ(Metric(series), 0) << series;
  }
}

TEST_F(ServiceMetricsTest, CountsACallWhenItEnds) {
  metrics_.CallBegan(RpcMethod::kGet);
  EXPECT_EQ(Metric("pkv_rpc_inflight{method=\"Get\"}"), 1);
  EXPECT_EQ(Metric("pkv_rpc_requests_total{code=\"CANCELLED\",method=\"Get\"}"), 0);
  metrics_.CallEnded(RpcMethod::kGet, absl::StatusCode::kCancelled, absl::Milliseconds(1));
  EXPECT_EQ(Metric("pkv_rpc_inflight{method=\"Get\"}"), 0);
  EXPECT_EQ(Metric("pkv_rpc_requests_total{code=\"CANCELLED\",method=\"Get\"}"), 1);
  EXPECT_EQ(Metric("pkv_rpc_duration_seconds_count{method=\"Get\"}"), 1);
}

TEST_F(ServiceMetricsTest, ShowsAnUnexpectedCodeAsInternal) {
  metrics_.CallBegan(RpcMethod::kStat);
  metrics_.CallEnded(RpcMethod::kStat, absl::StatusCode::kOutOfRange, absl::ZeroDuration());
  EXPECT_EQ(Metric("pkv_rpc_requests_total{code=\"INTERNAL\",method=\"Stat\"}"), 1);
}

TEST_F(ServiceMetricsTest, ObservesWhatACallMovedAndNotThatItMovedNothing) {
  metrics_.Transferred(Direction::kOut, 5000);
  metrics_.Transferred(Direction::kOut, 0);
  metrics_.WaitedForReader(absl::Milliseconds(250));
  EXPECT_EQ(Metric("pkv_transfer_bytes_count{direction=\"out\"}"), 1);
  EXPECT_EQ(Metric("pkv_transfer_bytes_sum{direction=\"out\"}"), 5000);
  EXPECT_EQ(Metric("pkv_transfer_bytes_count{direction=\"in\"}"), 0);
  EXPECT_EQ(Metric("pkv_stall_seconds_total{cause=\"peer_flow_control\"}"), 0.25);
}

TEST_F(ServiceMetricsTest, ObservesTheAgeOfWhatIsEvictedForRoom) {
  metrics_.OnEviction(EvictionReason::kCapacity, 100, absl::Seconds(30));
  metrics_.OnEviction(EvictionReason::kIntegrity, 10, absl::Seconds(500));
  EXPECT_EQ(Metric("pkv_evictions_total{reason=\"capacity\",tier=\"dram\"}"), 1);
  EXPECT_EQ(Metric("pkv_evicted_bytes_total{reason=\"capacity\",tier=\"dram\"}"), 100);
  EXPECT_EQ(Metric("pkv_eviction_age_seconds_count{tier=\"dram\"}"), 1);
  EXPECT_EQ(Metric("pkv_eviction_age_seconds_sum{tier=\"dram\"}"), 30);
}

TEST_F(ServiceMetricsTest, ObservesTheFoundPartOfALookup) {
  metrics_.LookedUp(512, 128);
  metrics_.LookedUp(0, 0);
  EXPECT_EQ(Metric("pkv_lookup_tokens_total"), 512);
  EXPECT_EQ(Metric("pkv_lookup_hit_tokens_total"), 128);
  EXPECT_EQ(Metric("pkv_lookup_prefix_hit_ratio_count"), 1) << "an empty lookup has no ratio";
  EXPECT_EQ(Metric("pkv_lookup_prefix_hit_ratio_sum"), 0.25);
}

TEST_F(ServiceMetricsTest, StoreCollectorReadsTheStore) {
  const SealedObject object = MakeTestWindow(2, 1);
  ASSERT_THAT(Put(object), IsOk());
  const Lease lease = store_->Find(object.key());
  std::map<std::string, double> values;
  for (const auto& family : StoreCollector(store_.get(), nullptr).Collect()) {
    values[family.name] = family.metric.at(0).gauge.value;
  }
  EXPECT_EQ(values["pkv_tier_capacity_bytes"], 4.0 * kArenaUnitBytes);
  EXPECT_EQ(values["pkv_tier_resident_bytes"], kArenaUnitBytes);
  EXPECT_EQ(values["pkv_tier_pinned_bytes"], kArenaUnitBytes);
  EXPECT_EQ(values["pkv_tier_blocks"], 1);
  EXPECT_EQ(values.at("pkv_admission_inflight_bytes"), 0);
}

TEST_F(ServiceMetricsTest, CountsWhatTheDiskDoes) {
  for (const char* series :
       {"pkv_ssd_written_bytes_total", "pkv_ssd_read_bytes_total",
        "pkv_ssd_io_errors_total{op=\"read\"}", "pkv_ssd_io_errors_total{op=\"write\"}",
        "pkv_ssd_io_errors_total{op=\"sync\"}", "pkv_ssd_io_duration_seconds_count{op=\"read\"}",
        "pkv_ssd_fsync_duration_seconds_count", "pkv_tier_hits_total{tier=\"ssd\"}",
        "pkv_evictions_total{reason=\"demoted\",tier=\"dram\"}",
        "pkv_evictions_total{reason=\"capacity\",tier=\"ssd\"}"}) {
    EXPECT_EQ(Metric(series), 0) << series;
  }
  metrics_.OnDiskIo(DiskOp::kWrite, 4096, absl::Milliseconds(1));
  metrics_.OnDiskIo(DiskOp::kRead, 8192, absl::Milliseconds(1));
  metrics_.OnDiskIo(DiskOp::kSync, 0, absl::Milliseconds(1));
  metrics_.OnDiskError(DiskOp::kSync);
  metrics_.OnLogEviction(100, absl::Seconds(9));
  metrics_.TierHits(5, 2);
  EXPECT_EQ(Metric("pkv_ssd_written_bytes_total"), 4096);
  EXPECT_EQ(Metric("pkv_ssd_read_bytes_total"), 8192);
  EXPECT_EQ(Metric("pkv_ssd_io_duration_seconds_count{op=\"write\"}"), 1);
  EXPECT_EQ(Metric("pkv_ssd_fsync_duration_seconds_count"), 1);
  EXPECT_EQ(Metric("pkv_ssd_io_errors_total{op=\"sync\"}"), 1);
  EXPECT_EQ(Metric("pkv_evicted_bytes_total{reason=\"capacity\",tier=\"ssd\"}"), 100);
  EXPECT_EQ(Metric("pkv_eviction_age_seconds_sum{tier=\"ssd\"}"), 9);
  EXPECT_EQ(Metric("pkv_tier_hits_total{tier=\"ssd\"}"), 2);
  EXPECT_EQ(Metric("pkv_tier_hits_total{tier=\"dram\"}"), 3);
}

TEST_F(ServiceMetricsTest, StoreCollectorShowsBothTiers) {
  MakeLog();
  const SealedObject object = MakeTestWindow(2, 1);
  DiskBuffer units(kDiskUnitBytes);
  std::ranges::copy(object.bytes(), units.span().begin());
  log_->Publish(
      object.key(),
      log_->Append(object.key(), DescribeObject(object.header, object.head()), units.span())
          .value());
  std::map<std::string, double> values;
  for (const auto& family : StoreCollector(store_.get(), log_.get()).Collect()) {
    if (family.metric.size() == 2) values[family.name] = family.metric[1].gauge.value;
  }
  EXPECT_EQ(values["pkv_tier_capacity_bytes"], 4.0 * kLogBytesMin);
  EXPECT_EQ(values["pkv_tier_resident_bytes"], 3.0 * kDiskUnitBytes);
  EXPECT_EQ(values["pkv_tier_blocks"], 1);
}

}  // namespace
}  // namespace pkv
