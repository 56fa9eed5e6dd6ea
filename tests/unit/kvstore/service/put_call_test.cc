#include "kvstore/service/put_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"
#include "tests/unit/kvstore/service/rpc_fixture.h"

namespace pkv {
namespace {

using PutCallTest = RpcFixture;

TEST_F(PutCallTest, AcceptsStoresAndGivesReceipts) {
  StartServer(8);
  const SealedObject object = MakeTestWindow(2, 1);
  Context context;
  const auto stream = stub_->Put(&context);
  ASSERT_TRUE(stream->Write(BeginOf(object)));
  v1::PutReply reply;
  ASSERT_TRUE(stream->Read(&reply));
  EXPECT_EQ(reply.accepted().decisions(0), v1::PUT_DECISION_WANTED);
  ASSERT_TRUE(stream->Write(PieceOf(object, 0)));
  ASSERT_TRUE(stream->Write(PieceOf(object, 1)));
  ASSERT_TRUE(stream->Write(CommitOf(object)));
  ASSERT_TRUE(stream->Read(&reply));
  EXPECT_EQ(reply.receipt().result(), v1::PUT_RESULT_STORED);
  stream->WritesDone();
  EXPECT_FALSE(stream->Read(&reply));
  EXPECT_THAT(FromGrpc(stream->Finish()), IsOk());
  EXPECT_TRUE(Has(object));
}

TEST_F(PutCallTest, GivesMemoryBackWhenTheClientDies) {
  StartServer(8);
  const SealedObject object = MakeTestWindow(2, 1);
  Context context;
  const auto stream = stub_->Put(&context);
  ASSERT_TRUE(stream->Write(BeginOf(object)));
  v1::PutReply reply;
  ASSERT_TRUE(stream->Read(&reply));
  EXPECT_GT(store_->stats().reserved_bytes, 0u);
  ASSERT_TRUE(stream->Write(PieceOf(object, 0)));
  context.TryCancel();
  EXPECT_THAT(FromGrpc(stream->Finish()), StatusIs(absl::StatusCode::kCancelled));
  StopServer();
  EXPECT_EQ(store_->stats().reserved_bytes, 0u);
  EXPECT_EQ(store_->stats().num_objects, 0u);
  EXPECT_EQ(Metric("pkv_block_puts_total{result=\"abandoned\"}"), 1);
}

TEST_F(PutCallTest, EndsWithTheErrorOfABrokenProtocol) {
  StartServer(8);
  Context context;
  const auto stream = stub_->Put(&context);
  ASSERT_TRUE(stream->Write(PieceOf(MakeTestWindow(2, 1), 0)));
  v1::PutReply reply;
  EXPECT_FALSE(stream->Read(&reply));
  EXPECT_THAT(FromGrpc(stream->Finish()), StatusIs(absl::StatusCode::kInvalidArgument));
}

// It is answered for every staged message, reads no answer and goes on: not for ever.
TEST_F(PutCallTest, EndsAClientThatLeavesItsAnswersUnread) {
  StartServer(8);
  const ShmStages::Lent lent = stages_.Lend().value();
  Context context;
  const auto stream = stub_->Put(&context);
  v1::DataFrame begin = BeginOf(MakeTestWindow(2, 1));
  begin.mutable_control()->mutable_put_begin()->set_stage(lent.token);
  ASSERT_TRUE(stream->Write(begin));
  v1::DataFrame nothing;
  nothing.mutable_control()->mutable_staged();
  // Some 10,000 answers fit the stream's window, 5,121 may wait behind them.
  int num_written = 0;
  while (num_written < 200'000 && stream->Write(nothing)) ++num_written;
  v1::PutReply reply;
  while (stream->Read(&reply)) {
  }
  EXPECT_THAT(FromGrpc(stream->Finish()),
              StatusIs(absl::StatusCode::kResourceExhausted, ::testing::HasSubstr("answers")));
  stages_.TakeBack(lent.token);
}

TEST_F(PutCallTest, IsUnavailableWhileDraining) {
  StartServer(8);
  draining_ = true;
  Context context;
  const auto stream = stub_->Put(&context);
  v1::PutReply reply;
  EXPECT_FALSE(stream->Read(&reply));
  EXPECT_THAT(FromGrpc(stream->Finish()), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(Metric("pkv_rpc_rejected_total{reason=\"draining\"}"), 1);
}

}  // namespace
}  // namespace pkv
