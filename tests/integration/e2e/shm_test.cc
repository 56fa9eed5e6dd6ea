// The main job with blocks read in place, prefill and decode attending to bytes in pkvd's memory,
// and put by way of a stage.

#include "tests/integration/e2e/fleet.h"

namespace pkv {
namespace {

class ShmTest : public Fleet {
 protected:
  void StartAll(const std::string& transport) {
    more_for_pkvd_ = {"--shm-socket", scratch_ + "/shm.sock"};
    more_for_workers_ = {"--transport", transport};
    StartPkvd();
    StartWorkers();
  }
  double ShmBytes() {
    return Metric("pkv_payload_bytes_total{direction=\"out\",transport=\"shm\"}");
  }
  double PutBytes(const std::string& transport) {
    return Metric("pkv_payload_bytes_total{direction=\"in\",transport=\"" + transport + "\"}");
  }
  double GrpcBytes() {
    return Metric("pkv_payload_bytes_total{direction=\"out\",transport=\"grpc\"}");
  }
};

TEST_F(ShmTest, BlocksReadInPlaceGiveTheTokensOfBlocksSentOverGrpc) {
  const std::string prompt = Document(3000);
  StartAll("grpc");
  const Result sent = Generate("default", prompt, 64, {"--refuse-recompute"});
  ASSERT_EQ(sent.exit_code, 0) << sent.err;
  EXPECT_GT(GrpcBytes(), 0);
  EXPECT_EQ(ShmBytes(), 0);
  const double put_bytes = PutBytes("grpc");
  EXPECT_GT(put_bytes, 0);
  EXPECT_EQ(PutBytes("shm"), 0);

  TearDown();
  SetUp();
  StartAll("shm");
  const Result in_place = Generate("default", prompt, 64, {"--refuse-recompute"});
  ASSERT_EQ(in_place.exit_code, 0) << in_place.err;
  EXPECT_EQ(in_place.json["token_ids"], sent.json["token_ids"]);
  EXPECT_EQ(in_place.json["decode"]["fetched_bytes"], sent.json["decode"]["fetched_bytes"]);
  EXPECT_EQ(ShmBytes(), double(in_place.json["decode"]["fetched_bytes"]));
  EXPECT_EQ(GrpcBytes(), 0);
  EXPECT_EQ(PutBytes("shm"), put_bytes);
  EXPECT_EQ(PutBytes("grpc"), 0);
  EXPECT_EQ(Metric("pkv_shm_connections"), 2)
      << "decode's gets and prefill's puts; prefill has fetched nothing yet";

  // Another request with the same beginning: prefill reads it in place as well.
  const Result next = Generate("default", prompt + " Next.", 8, {"--refuse-recompute"});
  ASSERT_EQ(next.exit_code, 0) << next.err;
  EXPECT_GT(next.json["prefill"]["cached_tokens"], 0);
  EXPECT_EQ(Metric("pkv_shm_connections"), 3);
  EXPECT_EQ(GrpcBytes(), 0);

  // What was read for is done: nothing stays pinned.
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (Metric("pkv_shm_pinned_bytes") > 0 && std::chrono::steady_clock::now() < deadline) {
  }
  EXPECT_EQ(Metric("pkv_shm_pinned_bytes"), 0);
}

TEST_F(ShmTest, AutoReadsInPlaceAndGoesOnOverGrpcWhereThatIsNotOffered) {
  StartAll("auto");
  const std::string prompt = Document(1500);
  const Result first = Generate("pkv2", prompt, 8, {"--refuse-recompute"});
  ASSERT_EQ(first.exit_code, 0) << first.err;
  EXPECT_GT(ShmBytes(), 0);
  EXPECT_EQ(GrpcBytes(), 0);

  pkvd_->Signal(SIGKILL);
  ASSERT_EQ(pkvd_->Wait(kPatience), 128 + SIGKILL);
  more_for_pkvd_.clear();
  StartPkvd(cache_);
  Result again;
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  do {
    again = Generate("pkv2", prompt, 8, {"--refuse-recompute"});
  } while (again.exit_code != 0 && std::chrono::steady_clock::now() < deadline);
  ASSERT_EQ(again.exit_code, 0) << again.err;
  EXPECT_EQ(again.json["token_ids"], first.json["token_ids"]);
  EXPECT_EQ(ShmBytes(), 0);
  EXPECT_GT(GrpcBytes(), 0);
}

}  // namespace
}  // namespace pkv
