#include "worker/decode/ticket.h"

#include <gmock/gmock.h>

#include "tests/support/tiny_worker.h"

namespace pkv {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// What a bad ticket is refused with stands in decode_worker_test.cc; here is what a good one says.
class TicketTest : public TinyWorkersTest {
 protected:
  BatchRequest Read(const v1::DecodeRequest& request) {
    const absl::StatusOr<BatchRequest> read = ReadTicket(request, *host_);
    EXPECT_THAT(read, IsOk());
    return read.ok() ? *read : BatchRequest();
  }
};

TEST_F(TicketTest, NamesTablesBlocksAndWindowInTheOrderOfTheStream) {
  const std::vector<int32_t> prompt = RandomPrompt(1, 300);
  const v1::HandoffTicket ticket = Prefill(prompt, "pkv2").ticket();
  const BatchRequest request = Read(MakeDecode(ticket, 7));
  EXPECT_EQ(request.tokens, prompt);
  EXPECT_EQ(request.params.name, "pkv2");
  EXPECT_EQ(request.num_tables, 1);
  EXPECT_EQ(request.num_blocks, 2);
  EXPECT_EQ(request.num_window_tokens, 43);
  EXPECT_EQ(request.max_tokens, 7);
  ASSERT_EQ(request.keys.size(), 4u);
  EXPECT_EQ(request.keys[0], cache_.Keys(ObjectKind::kTable).front());
  EXPECT_EQ(request.keys[1], BlockKey(prompt, 0, "pkv2"));
  EXPECT_EQ(request.keys[2], BlockKey(prompt, 1, "pkv2"));
  EXPECT_EQ(request.keys[3], cache_.Keys(ObjectKind::kWindow).front());
}

TEST_F(TicketTest, HandsOnWhereTheObjectsWerePut) {
  v1::DecodeRequest request = MakeDecode(Prefill(RandomPrompt(6, 20), "fp16").ticket(), 1);
  EXPECT_EQ(Read(request).cache_server, "") << "one that has no address";
  request.mutable_ticket()->set_cache_server("pkvd-1.pkvd:7440");
  EXPECT_EQ(Read(request).cache_server, "pkvd-1.pkvd:7440");
}

TEST_F(TicketTest, NamesNothingForAPromptOfOneToken) {
  const BatchRequest request = Read(MakeDecode(Prefill(RandomPrompt(2, 1), "pkv2").ticket(), 1));
  EXPECT_TRUE(request.keys.empty());
  EXPECT_EQ(request.num_blocks + request.num_window_tokens, 0);
}

TEST_F(TicketTest, CutsMaxTokensAtTheModelsContext) {
  const int context = host_->config().max_position_embeddings;
  const v1::HandoffTicket ticket = Prefill(RandomPrompt(3, context - 2), "kivi2").ticket();
  EXPECT_EQ(Read(MakeDecode(ticket, 2)).max_tokens, 2);
  v1::DecodeRequest request = MakeDecode(ticket, 3);
  request.mutable_sampling()->set_max_tokens(0xffffffff);
  EXPECT_EQ(Read(request).max_tokens, 3) << "the last may stand just behind it";
}

TEST_F(TicketTest, TakesSamplingWithItsDefaults) {
  v1::DecodeRequest request = MakeDecode(Prefill(RandomPrompt(4, 20), "fp16").ticket(), 1);
  BatchRequest read = Read(request);
  EXPECT_EQ(read.sampling.temperature, 0);
  EXPECT_EQ(read.sampling.top_p, 1) << "0 is off";
  EXPECT_TRUE(read.end_tokens.empty()) << "they are ignored";
  EXPECT_FALSE(read.put_back || read.refuse_recompute);
  v1::Sampling& sampling = *request.mutable_sampling();
  sampling.set_temperature(0.5f);
  sampling.set_top_p(0.25f);
  sampling.set_seed(99);
  sampling.set_ignore_eos(false);
  request.set_put_back(true);
  request.set_refuse_recompute(true);
  read = Read(request);
  EXPECT_EQ(read.sampling.temperature, 0.5f);
  EXPECT_EQ(read.sampling.top_p, 0.25f);
  EXPECT_EQ(read.sampling.seed, 99u);
  EXPECT_THAT(read.end_tokens, ElementsAre(2));
  EXPECT_TRUE(read.put_back && read.refuse_recompute);
}

TEST_F(TicketTest, RefusesATicketThatSaysNothing) {
  EXPECT_THAT(ReadTicket({}, *host_), StatusIs(absl::StatusCode::kInvalidArgument));
  v1::DecodeRequest request = MakeDecode(Prefill(RandomPrompt(5, 20), "fp16").ticket(), 0);
  EXPECT_THAT(ReadTicket(request, *host_),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("max_tokens 0")));
}

}  // namespace
}  // namespace pkv
