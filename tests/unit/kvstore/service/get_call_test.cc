#include "kvstore/service/get_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "tests/support/status_matchers.h"
#include "tests/unit/kvstore/service/rpc_fixture.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

// Of this process: /proc/self/statm counts pages.
uint64_t ResidentBytes() {
  std::ifstream in("/proc/self/statm");
  uint64_t total = 0, resident = 0;
  in >> total >> resident;
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

class GetCallTest : public RpcFixture {
 protected:
  v1::GetRequest RequestFor(std::initializer_list<const SealedObject*> objects) {
    v1::GetRequest request;
    for (const SealedObject* object : objects) *request.add_objects() = ToProto(object->key());
    return request;
  }

  grpc::Status Get(const v1::GetRequest& request, std::vector<v1::DataFrame>& frames) {
    Context context;
    const auto reader = stub_->Get(&context, request);
    v1::DataFrame frame;
    while (reader->Read(&frame)) frames.push_back(frame);
    return reader->Finish();
  }
};

TEST_F(GetCallTest, SendsManifestPiecesAndTrailer) {
  StartServer(16);
  const SealedObject object = MakeTestWindow(2, 1, 40), absent = MakeTestWindow(3, 1);
  ASSERT_THAT(Put(object), IsOk());
  v1::GetRequest request = RequestFor({&object, &absent});
  request.set_message_bytes(4096);
  std::vector<v1::DataFrame> frames;
  EXPECT_THAT(FromGrpc(Get(request, frames)), IsOk());
  ASSERT_EQ(frames.size(), 7u) << "manifest, 2 * 10240 bytes by 4096, trailer";
  const v1::GetManifest& manifest = frames.front().control().manifest();
  EXPECT_EQ(manifest.heads(0).size(), object.head().size());
  EXPECT_TRUE(manifest.heads(1).empty());
  std::string payload;
  for (const v1::DataFrame& frame : frames) payload += frame.payload();
  EXPECT_EQ(payload, std::string(reinterpret_cast<const char*>(object.frame(0).data()), 20480));
  EXPECT_EQ(frames[5].control().layers_done(), 2u);
  const v1::GetTrailer& trailer = frames.back().control().trailer();
  EXPECT_EQ(trailer.statuses(0).code(), grpc::StatusCode::OK);
  EXPECT_EQ(trailer.statuses(1).code(), grpc::StatusCode::NOT_FOUND);
  StopServer();
  EXPECT_EQ(store_->stats().pinned_bytes, 0u);
  EXPECT_EQ(Metric("pkv_block_gets_total{result=\"hit\"}"), 1);
  EXPECT_EQ(Metric("pkv_block_gets_total{result=\"miss\"}"), 1);
  EXPECT_EQ(Metric("pkv_payload_bytes_total{direction=\"out\",transport=\"grpc\"}"), 20480);
  EXPECT_EQ(Metric("pkv_transfer_bytes_count{direction=\"out\"}"), 1);
  EXPECT_EQ(Metric("pkv_transfer_bytes_sum{direction=\"out\"}"), 20480);
  EXPECT_GT(Metric("pkv_stall_seconds_total{cause=\"peer_flow_control\"}"), 0);
}

TEST_F(GetCallTest, AnswersDataLossForAFlippedBitAndDropsTheObject) {
  StartServer(16);
  const SealedObject object = MakeTestWindow(2, 1, 4), whole = MakeTestWindow(3, 2, 4);
  ASSERT_THAT(Put(object), IsOk());
  ASSERT_THAT(Put(whole), IsOk());
  FlipBit(store_->Find(object.key()), object.head().size() + 1300);
  std::vector<v1::DataFrame> frames;
  EXPECT_THAT(FromGrpc(Get(RequestFor({&object, &whole}), frames)), IsOk());
  const v1::GetTrailer& trailer = frames.back().control().trailer();
  EXPECT_EQ(trailer.statuses(0).code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_EQ(trailer.statuses(1).code(), grpc::StatusCode::OK);
  EXPECT_FALSE(Has(object));
  StopServer();
  EXPECT_EQ(Metric("pkv_integrity_failures_total{stage=\"dram\"}"), 1);
  EXPECT_EQ(Metric("pkv_block_gets_total{result=\"corrupt\"}"), 1);
}

TEST_F(GetCallTest, RefusesWhatIsOutOfItsLimits) {
  StartServer(4);
  const SealedObject object = MakeTestWindow(2, 1);
  std::vector<v1::DataFrame> frames;
  v1::GetRequest request = RequestFor({&object});
  for (const uint32_t message_bytes : {4095u, (1u << 20) + 1}) {
    request.set_message_bytes(message_bytes);
    EXPECT_THAT(FromGrpc(Get(request, frames)),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("message_bytes")));
  }
  request = RequestFor({&object});
  request.set_layer_begin(2);
  request.set_layer_end(2);
  EXPECT_THAT(FromGrpc(Get(request, frames)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("[2, 2)")));
  request = RequestFor({&object});
  request.mutable_objects(0)->set_id("short");
  EXPECT_THAT(FromGrpc(Get(request, frames)), StatusIs(absl::StatusCode::kInvalidArgument));
  request = RequestFor({&object});
  while (request.objects_size() <= kMaxObjectsPerCall) *request.add_objects() = request.objects(0);
  EXPECT_THAT(FromGrpc(Get(request, frames)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("4097")));
  EXPECT_TRUE(frames.empty());
}

// 32 clients ask for 16 MiB each and read nothing. Frames are not copied for them: what grows is at
// most one message and the transport's window per stream, on both ends, for this process is both.
TEST_F(GetCallTest, SlowReadersCostNoMemory) {
  constexpr int kReaders = 32;
  constexpr uint64_t kAllowedGrowth = uint64_t{64} << 20;
  StartServer((uint64_t{17} << 20) / kArenaUnitBytes);
  const SealedObject object = MakeTestWindow(2, 1, 4096, 16);
  ASSERT_THAT(Put(object), IsOk());
  const uint64_t before = ResidentBytes();
  std::vector<std::unique_ptr<Context>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::DataFrame>>> readers;
  v1::DataFrame manifest;
  for (int i = 0; i < kReaders; ++i) {
    contexts.push_back(std::make_unique<Context>());
    readers.push_back(stub_->Get(contexts.back().get(), RequestFor({&object})));
    ASSERT_TRUE(readers.back()->Read(&manifest));
  }
  EXPECT_EQ(Metric("pkv_rpc_inflight{method=\"Get\"}"), kReaders);
  EXPECT_EQ(store_->stats().pinned_bytes, store_->stats().resident_bytes) << "pinned once";
  EXPECT_LT(ResidentBytes(), before + kAllowedGrowth);
  RecordProperty("resident_growth_bytes", static_cast<int>(ResidentBytes() - before));
  // Nothing moves for the time of the watchdog: it ends them all, and the pin with them. A stream
  // that was still filling its window gets another turn.
  while (Metric("pkv_rpc_rejected_total{reason=\"stalled\"}") < kReaders) {
    clock_.Advance(absl::Seconds(11));
    watchdog_.CancelStalled();
  }
  for (int i = 0; i < kReaders; ++i) {
    v1::DataFrame frame;
    while (readers[i]->Read(&frame)) {
    }
    EXPECT_THAT(FromGrpc(readers[i]->Finish()), StatusIs(absl::StatusCode::kCancelled));
  }
  StopServer();
  EXPECT_EQ(Metric("pkv_rpc_rejected_total{reason=\"stalled\"}"), kReaders);
  EXPECT_EQ(Metric("pkv_block_gets_total{result=\"shed\"}"), kReaders);
  EXPECT_EQ(store_->stats().pinned_bytes, 0u);
}

TEST_F(GetCallTest, EndsItsPinsWhenTheClientCancels) {
  StartServer((uint64_t{17} << 20) / kArenaUnitBytes);
  const SealedObject object = MakeTestWindow(2, 1, 4096, 16);
  ASSERT_THAT(Put(object), IsOk());
  Context context;
  const auto reader = stub_->Get(&context, RequestFor({&object}));
  v1::DataFrame frame;
  ASSERT_TRUE(reader->Read(&frame));
  EXPECT_GT(store_->stats().pinned_bytes, 0u);
  context.TryCancel();
  while (reader->Read(&frame)) {
  }
  EXPECT_THAT(FromGrpc(reader->Finish()), StatusIs(absl::StatusCode::kCancelled));
  StopServer();
  EXPECT_EQ(store_->stats().pinned_bytes, 0u);
  EXPECT_EQ(Metric("pkv_rpc_requests_total{code=\"CANCELLED\",method=\"Get\"}"), 1);
}

TEST_F(GetCallTest, BringsInWhatIsOnDisk) {
  MakeLog();
  StartServer(16);
  const SealedObject table = MakeTestTable(1);
  const SealedObject block = MakeTestBlock(11, 1, table.header.id), window = MakeTestWindow(3, 1);
  for (const SealedObject* object : {&table, &block, &window}) ASSERT_THAT(Put(*object), IsOk());
  WriteToDisk(table);
  MoveToDisk(block);
  MoveToDisk(table);
  std::vector<v1::DataFrame> frames;
  EXPECT_THAT(FromGrpc(Get(RequestFor({&table, &block, &window}), frames)), IsOk());
  std::string payload;
  for (const v1::DataFrame& frame : frames) payload += frame.payload();
  EXPECT_EQ(payload.size(),
            2 * (table.header.frame_bytes + block.header.frame_bytes + window.header.frame_bytes));
  for (const v1::ObjectStatus& status : frames.back().control().trailer().statuses()) {
    EXPECT_EQ(status.code(), grpc::StatusCode::OK);
  }
  StopServer();
  EXPECT_EQ(Metric("pkv_tier_hits_total{tier=\"ssd\"}"), 2);
  EXPECT_EQ(Metric("pkv_tier_hits_total{tier=\"dram\"}"), 1);
  EXPECT_EQ(Metric("pkv_block_gets_total{result=\"hit\"}"), 3);
}

TEST_F(GetCallTest, MissesWhatIsDamagedOnDisk) {
  MakeLog();
  StartServer(16);
  const SealedObject object = MakeTestWindow(2, 1), whole = MakeTestWindow(3, 2);
  ASSERT_THAT(Put(object), IsOk());
  ASSERT_THAT(Put(whole), IsOk());
  MoveToDisk(object);
  FlipBitOnDisk(object, object.head().size() + 10);
  std::vector<v1::DataFrame> frames;
  EXPECT_THAT(FromGrpc(Get(RequestFor({&object, &whole}), frames)), IsOk());
  const v1::GetTrailer& trailer = frames.back().control().trailer();
  EXPECT_EQ(trailer.statuses(0).code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(trailer.statuses(1).code(), grpc::StatusCode::OK);
  EXPECT_EQ(Metric("pkv_integrity_failures_total{stage=\"ssd\"}"), 1);
}

// The disk stands still until the get has been answered.
TEST_F(GetCallTest, WaitsForTheDiskNoLongerThanHalfOfItsTime) {
  Mutex mu;
  CondVar opened;
  bool is_open = false;
  disk_.SetFault([&](FakeDisk::Call call) {
    if (call != FakeDisk::Call::kRead) return absl::OkStatus();
    MutexLock lock(&mu);
    while (!is_open) opened.Wait(&mu);
    return absl::OkStatus();
  });
  MakeLog();
  StartServer(16);
  const SealedObject object = MakeTestWindow(2, 1);
  ASSERT_THAT(Put(object), IsOk());
  MoveToDisk(object);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(2));
  const auto reader = stub_->Get(&context, RequestFor({&object}));
  v1::DataFrame frame;
  while (reader->Read(&frame)) continue;
  EXPECT_THAT(FromGrpc(reader->Finish()), IsOk());
  EXPECT_EQ(frame.control().trailer().statuses(0).code(), grpc::StatusCode::NOT_FOUND);
  {
    MutexLock lock(&mu);
    is_open = true;
    opened.SignalAll();
  }
  pager_.reset();
}

}  // namespace
}  // namespace pkv
