#include "pkv/client/cache_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "client/cache_client_impl.h"
#include "proto/transport/data_frame.h"
#include "tests/support/scripted_connection.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct BadOption {
  const char* name;
  std::function<void(ClientOptions&)> spoil;
};

TEST(ClientOptionsTest, DefaultsAreValid) { EXPECT_THAT(ValidateOptions({}), IsOk()); }

TEST(ClientOptionsTest, NamesTheOptionOutOfItsRange) {
  const std::vector<BadOption> bad = {
      {"address", [](ClientOptions& o) { o.address = ""; }},
      {"num_channels", [](ClientOptions& o) { o.num_channels = 0; }},
      {"num_channels", [](ClientOptions& o) { o.num_channels = 17; }},
      {"num_get_streams", [](ClientOptions& o) { o.num_get_streams = 0; }},
      {"num_get_streams", [](ClientOptions& o) { o.num_get_streams = 17; }},
      {"num_check_threads", [](ClientOptions& o) { o.num_check_threads = 0; }},
      {"num_check_threads", [](ClientOptions& o) { o.num_check_threads = 65; }},
      {"lookup_deadline", [](ClientOptions& o) { o.lookup_deadline = absl::ZeroDuration(); }},
      {"get_deadline", [](ClientOptions& o) { o.get_deadline = absl::InfiniteDuration(); }},
      {"put_deadline", [](ClientOptions& o) { o.put_deadline = -absl::Seconds(1); }},
      {"progress_timeout", [](ClientOptions& o) { o.progress_timeout = absl::ZeroDuration(); }},
      {"max_attempts", [](ClientOptions& o) { o.max_attempts = 0; }},
      {"initial_backoff", [](ClientOptions& o) { o.initial_backoff = absl::ZeroDuration(); }},
      {"max_backoff", [](ClientOptions& o) { o.max_backoff = absl::Milliseconds(19); }},
      {"direct_from", [](ClientOptions& o) { o.direct_from = "prefill"; }},
      {"direct_from 'prefill:7441' needs transport auto",
       [](ClientOptions& o) {
         o.direct_from = "prefill:7441";
         o.transport = Transport::kNccl;
       }},
      {"message_bytes", [](ClientOptions& o) { o.message_bytes = kMinPayloadBytes - 1; }},
      {"message_bytes", [](ClientOptions& o) { o.message_bytes = kMaxPayloadBytes + 1; }},
  };
  for (const BadOption& option : bad) {
    ClientOptions options;
    option.spoil(options);
    EXPECT_THAT(CacheClient::Create(options),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(option.name)));
  }
}

TEST(ClientOptionsTest, AcceptsTheEndsOfEachRange) {
  ClientOptions options;
  options.num_channels = 16;
  options.message_bytes = kMinPayloadBytes;
  options.max_backoff = options.initial_backoff;
  options.max_attempts = 1;
  EXPECT_THAT(ValidateOptions(options), IsOk());
  options.message_bytes = kMaxPayloadBytes;
  EXPECT_THAT(ValidateOptions(options), IsOk());
}

class CacheClientTest : public testing::Test {
 protected:
  CacheClientTest() {
    auto connection = std::make_unique<ScriptedConnection>();
    connection_ = connection.get();
    ClientOptions options = ImpatientOptions();
    options.statistics = statistics_;
    client_ = MakeCacheClient(options, std::move(connection));
  }

  uint64_t Ended(CallMethod method, absl::StatusCode code) const {
    return statistics_->Read(method).ended[static_cast<size_t>(code)];
  }

  const std::shared_ptr<CallStatistics> statistics_ = std::make_shared<CallStatistics>();
  ScriptedConnection* connection_;
  std::unique_ptr<CacheClient> client_;
  const std::vector<Digest> ids_ = {TestDigest(1), TestDigest(2), TestDigest(3)};
  const std::vector<Variant> variants_ = {{"pkv2", 1}, {"fp16", 2}};
};

TEST_F(CacheClientTest, LookupCarriesTheQuestionAndTheAnswer) {
  connection_->lookup = [&](const v1::LookupRequest& request, v1::LookupResponse& response) {
    EXPECT_EQ(request.prefix_ids_size(), 3);
    EXPECT_EQ(request.prefix_ids(2), std::string(ids_[2].AsBytes()));
    EXPECT_EQ(request.variants(1).name(), "fp16");
    response.set_variant_index(1);
    response.set_num_blocks(2);
    response.set_bytes(1000);
    response.add_table_ids(std::string(TestDigest(9).AsBytes()));
    response.add_blocks_per_variant(0);
    response.add_blocks_per_variant(2);
    return absl::OkStatus();
  };
  const auto result = client_->Lookup(ids_, variants_);
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(result->variant_index, 1);
  EXPECT_EQ(result->num_blocks, 2);
  EXPECT_EQ(result->bytes, 1000u);
  EXPECT_THAT(result->table_ids, ElementsAre(TestDigest(9)));
  EXPECT_THAT(result->blocks_per_variant, ElementsAre(0, 2));
}

TEST_F(CacheClientTest, LookupOfNothingIsAMissWithoutACall) {
  const auto result = client_->Lookup({}, variants_);
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(result->num_blocks, 0);
  EXPECT_THAT(result->blocks_per_variant, ElementsAre(0, 0));
  EXPECT_EQ(connection_->num_calls, 0);
}

TEST_F(CacheClientTest, LookupRefusesTooMuch) {
  const std::vector<Digest> ids(kMaxObjectsPerCall + 1);
  EXPECT_THAT(client_->Lookup(ids, variants_),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("4097")));
  EXPECT_THAT(client_->Lookup(ids_, {}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(client_->Lookup(ids_, std::vector<Variant>(17)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("17")));
}

TEST_F(CacheClientTest, LookupRefusesAnAnswerThatMakesNoSense) {
  const std::vector<std::function<void(v1::LookupResponse&)>> spoils = {
      [](v1::LookupResponse& r) { r.set_num_blocks(4); },
      [](v1::LookupResponse& r) { r.set_variant_index(2); },
      [](v1::LookupResponse& r) { r.add_blocks_per_variant(0); },
      [](v1::LookupResponse& r) { r.add_table_ids("short"); },
  };
  for (const auto& spoil : spoils) {
    connection_->lookup = [&](const v1::LookupRequest&, v1::LookupResponse& response) {
      response.add_blocks_per_variant(0);
      response.add_blocks_per_variant(0);
      spoil(response);
      return absl::OkStatus();
    };
    EXPECT_THAT(client_->Lookup(ids_, variants_), StatusIs(absl::StatusCode::kDataLoss));
  }
}

TEST_F(CacheClientTest, RetriesWhatIsSafeToRepeat) {
  int num_failures = 2;
  connection_->remove = [&](const v1::DeleteRequest&, v1::DeleteResponse& response) {
    if (num_failures-- > 0) return absl::UnavailableError("restarting");
    response.set_num_deleted(1);
    return absl::OkStatus();
  };
  const ObjectKey key{ObjectKind::kBlock, ids_[0], variants_[0]};
  EXPECT_THAT(client_->Delete({&key, 1}), IsOkAndHolds(1));
  EXPECT_EQ(client_->counters().retries, 2u);
  EXPECT_EQ(client_->counters().failures, 0u);
  EXPECT_EQ(statistics_->Read(CallMethod::kDelete).retries, 2u);
  EXPECT_EQ(Ended(CallMethod::kDelete, absl::StatusCode::kOk), 1u);
}

TEST_F(CacheClientTest, EveryCallFailsWithUnavailableWhenTheServerIsAway) {
  const ObjectKey key{ObjectKind::kBlock, ids_[0], variants_[0]};
  const int attempts = ImpatientOptions().max_attempts;
  EXPECT_THAT(client_->Lookup(ids_, variants_), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(client_->Stat({&key, 1}), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(client_->Delete({&key, 1}), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(client_->Stats(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(client_->Drain(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(client_->Get({&key, 1}), StatusIs(absl::StatusCode::kUnavailable));
  const ObjectDescriptor descriptor{key, 1, 128};
  EXPECT_THAT(client_->StartPut({&descriptor, 1}), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(connection_->num_calls, 7 * attempts);
  EXPECT_EQ(client_->counters().failures, 7u);
  for (int m = 0; m < kNumCallMethods; ++m) {
    const auto method = static_cast<CallMethod>(m);
    EXPECT_EQ(Ended(method, absl::StatusCode::kUnavailable), 1u) << CallMethodName(method);
    EXPECT_EQ(statistics_->Read(method).in_flight, 0u) << CallMethodName(method);
    EXPECT_EQ(statistics_->Read(method).retries, static_cast<uint64_t>(attempts - 1));
  }
}

TEST_F(CacheClientTest, StatReturnsOneAnswerPerKey) {
  const SealedObject object = MakeTestBlock(1, 1);
  connection_->stat = [&](const v1::StatRequest& request, v1::StatResponse& response) {
    for (int i = 0; i < request.objects_size() - 1; ++i) response.add_objects();
    v1::ObjectInfo* info = response.add_objects();
    info->set_present(true);
    info->set_object_bytes(object.bytes().size());
    info->set_idle_seconds(1.5);
    info->set_head(object.head().data(), object.head().size());
    return absl::OkStatus();
  };
  const std::vector<ObjectKey> keys(3, object.key());
  const auto stats = client_->Stat(keys);
  ASSERT_THAT(stats, IsOk());
  ASSERT_EQ(stats->size(), 3u);
  EXPECT_FALSE((*stats)[0].present);
  EXPECT_EQ((*stats)[2].object_bytes, object.bytes().size());
  EXPECT_EQ((*stats)[2].idle, absl::Milliseconds(1500));
  EXPECT_TRUE(std::equal(object.head().begin(), object.head().end(), (*stats)[2].head.begin()));

  connection_->stat = [](const v1::StatRequest&, v1::StatResponse&) { return absl::OkStatus(); };
  EXPECT_THAT(client_->Stat(keys), StatusIs(absl::StatusCode::kDataLoss));
}

TEST_F(CacheClientTest, StreamMayOutliveItsClient) {
  const SealedObject object = MakeTestBlock(1, 1);
  connection_->scripts.push_back([](ScriptedStream&, const std::string*) {});
  const ObjectKey key = object.key();
  const std::unique_ptr<GetStream> stream = client_->StartGet({&key, 1});
  client_.reset();
  stream->Cancel();
  EXPECT_THAT(stream->WaitForAll(), StatusIs(absl::StatusCode::kCancelled));
}

TEST_F(CacheClientTest, CountsCalls) {
  const ObjectKey key{ObjectKind::kBlock, ids_[0], variants_[0]};
  client_->Lookup(ids_, variants_).IgnoreError();
  client_->StartGet({&key, 1})->Cancel();
  client_->Put({});
  const ClientCounters counters = client_->counters();
  EXPECT_EQ(counters.lookups, 1u);
  EXPECT_EQ(counters.gets, 1u);
  EXPECT_EQ(counters.puts, 1u);
}

}  // namespace
}  // namespace pkv
