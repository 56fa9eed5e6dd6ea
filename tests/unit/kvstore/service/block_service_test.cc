#include "kvstore/service/block_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"
#include "tests/unit/kvstore/service/rpc_fixture.h"

namespace pkv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using BlockServiceTest = RpcFixture;

TEST_F(BlockServiceTest, LooksUpTheLongestPrefix) {
  StartServer(16);
  const SealedObject table = MakeTestTable(1), first = MakeTestBlock(2, 1, table.header.id);
  ASSERT_THAT(Put(table), IsOk());
  ASSERT_THAT(Put(first), IsOk());
  v1::LookupRequest request;
  for (const uint64_t id : {2, 3}) {
    request.add_prefix_ids(TestDigest(id).bytes.data(), sizeof(Digest));
  }
  request.add_variants()->set_name("absent");
  *request.add_variants() = ToProto(first.header.variant());
  Context context;
  v1::LookupResponse response;
  ASSERT_THAT(FromGrpc(stub_->Lookup(&context, request, &response)), IsOk());
  EXPECT_EQ(response.variant_index(), 1u);
  EXPECT_EQ(response.num_blocks(), 1u);
  EXPECT_EQ(response.bytes(), first.bytes().size());
  ASSERT_EQ(response.table_ids_size(), 1);
  const absl::string_view table_id = table.header.id.AsBytes();
  EXPECT_EQ(response.table_ids(0), std::string(table_id.data(), table_id.size()));
  EXPECT_THAT(response.blocks_per_variant(), ElementsAre(0u, 1u));
  EXPECT_EQ(Metric("pkv_lookup_tokens_total"), 256);
  EXPECT_EQ(Metric("pkv_lookup_hit_tokens_total"), 128);
}

TEST_F(BlockServiceTest, RefusesALookupOutOfItsLimits) {
  StartServer(4);
  v1::LookupResponse response;
  v1::LookupRequest many_ids, many_variants, short_id;
  for (int i = 0; i < 4097; ++i) many_ids.add_prefix_ids(std::string(32, 'a'));
  for (int i = 0; i < 17; ++i) many_variants.add_variants()->set_name("a");
  short_id.add_prefix_ids("short");
  for (const v1::LookupRequest& request : {many_ids, many_variants, short_id}) {
    Context context;
    EXPECT_THAT(FromGrpc(stub_->Lookup(&context, request, &response)),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
  EXPECT_EQ(Metric("pkv_rpc_rejected_total{reason=\"too_large\"}"), 2);
}

TEST_F(BlockServiceTest, StatsWhatIsStoredAndWhatIsNot) {
  StartServer(8);
  const SealedObject object = MakeTestWindow(2, 1), absent = MakeTestWindow(3, 1);
  ASSERT_THAT(Put(object), IsOk());
  clock_.Advance(absl::Seconds(4));
  v1::StatRequest request;
  *request.add_objects() = ToProto(absent.key());
  *request.add_objects() = ToProto(object.key());
  Context context;
  v1::StatResponse response;
  ASSERT_THAT(FromGrpc(stub_->Stat(&context, request, &response)), IsOk());
  EXPECT_FALSE(response.objects(0).present());
  EXPECT_TRUE(response.objects(1).present());
  EXPECT_EQ(response.objects(1).object_bytes(), object.bytes().size());
  EXPECT_EQ(response.objects(1).idle_seconds(), 4);
  EXPECT_EQ(response.objects(1).head().size(), object.head().size());
}

TEST_F(BlockServiceTest, DeletesATableTogetherWithItsBlocks) {
  StartServer(16);
  const SealedObject table = MakeTestTable(1), block = MakeTestBlock(2, 1, table.header.id);
  ASSERT_THAT(Put(table), IsOk());
  ASSERT_THAT(Put(block), IsOk());
  v1::DeleteRequest request;
  *request.add_objects() = ToProto(table.key());
  v1::DeleteResponse response;
  Context alone;
  ASSERT_THAT(FromGrpc(stub_->Delete(&alone, request, &response)), IsOk());
  EXPECT_EQ(response.num_deleted(), 0u) << "the block needs it";
  *request.add_objects() = ToProto(block.key());
  Context together;
  ASSERT_THAT(FromGrpc(stub_->Delete(&together, request, &response)), IsOk());
  EXPECT_EQ(response.num_deleted(), 2u);
  EXPECT_EQ(store_->stats().resident_bytes, 0u);
}

TEST_F(BlockServiceTest, AdminTellsSizesAndStartsDraining) {
  StartServer(8);
  ASSERT_THAT(Put(MakeTestWindow(2, 1)), IsOk());
  {
    Context context;
    v1::DrainResponse response;
    ASSERT_THAT(FromGrpc(admin_->Drain(&context, {}, &response)), IsOk());
  }
  Context context;
  v1::StatsResponse response;
  ASSERT_THAT(FromGrpc(admin_->Stats(&context, {}, &response)), IsOk());
  EXPECT_EQ(response.capacity_bytes(), 8 * kArenaUnitBytes);
  EXPECT_EQ(response.resident_bytes(), kArenaUnitBytes);
  EXPECT_EQ(response.num_objects(), 1u);
  EXPECT_TRUE(response.draining());
  EXPECT_THAT(response.version(), HasSubstr("."));
}

TEST_F(BlockServiceTest, TellsWhatIsOnDiskAndStatsIt) {
  MakeLog();
  StartServer(16);
  const SealedObject block = MakeTestBlock(2, 1);
  ASSERT_THAT(Put(block), IsOk());
  MoveToDisk(block);
  v1::LookupRequest lookup;
  lookup.add_prefix_ids(block.header.id.bytes.data(), sizeof(Digest));
  *lookup.add_variants() = ToProto(block.header.variant());
  v1::LookupResponse found;
  Context lookup_context;
  ASSERT_THAT(FromGrpc(stub_->Lookup(&lookup_context, lookup, &found)), IsOk());
  EXPECT_EQ(found.num_blocks(), 1u);
  EXPECT_EQ(found.ssd_bytes(), block.bytes().size());
  v1::StatsResponse stats;
  Context stats_context;
  ASSERT_THAT(FromGrpc(admin_->Stats(&stats_context, {}, &stats)), IsOk());
  EXPECT_EQ(stats.ssd_objects(), 1u);
  EXPECT_EQ(stats.ssd_capacity_bytes(), log_->stats().capacity_bytes);
  EXPECT_GT(stats.ssd_resident_bytes(), block.bytes().size());
  v1::StatRequest request;
  *request.add_objects() = ToProto(block.key());
  v1::StatResponse response;
  Context context;
  ASSERT_THAT(FromGrpc(stub_->Stat(&context, request, &response)), IsOk());
  EXPECT_TRUE(response.objects(0).present());
  EXPECT_EQ(response.objects(0).head().size(), block.head().size());
}

}  // namespace
}  // namespace pkv
