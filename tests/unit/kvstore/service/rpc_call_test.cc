#include "kvstore/service/rpc_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"
#include "tests/unit/kvstore/service/rpc_fixture.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

using RpcCallTest = RpcFixture;

TEST_F(RpcCallTest, RefusesACallWithoutADeadline) {
  StartServer(4);
  const auto refused = StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no deadline"));
  {
    grpc::ClientContext context;
    v1::LookupResponse response;
    EXPECT_THAT(FromGrpc(stub_->Lookup(&context, {}, &response)), refused);
  }
  {
    grpc::ClientContext context;
    v1::StatsResponse response;
    EXPECT_THAT(FromGrpc(admin_->Stats(&context, {}, &response)), refused);
  }
  {
    grpc::ClientContext context;
    v1::DataFrame frame;
    const auto reader = stub_->Get(&context, {});
    EXPECT_FALSE(reader->Read(&frame));
    EXPECT_THAT(FromGrpc(reader->Finish()), refused);
  }
  {
    grpc::ClientContext context;
    v1::PutReply reply;
    const auto stream = stub_->Put(&context);
    EXPECT_FALSE(stream->Read(&reply));
    EXPECT_THAT(FromGrpc(stream->Finish()), refused);
  }
  StopServer();
  EXPECT_EQ(Metric("pkv_rpc_rejected_total{reason=\"no_deadline\"}"), 4);
  for (const char* method : {"Lookup", "AdminStats", "Get", "Put"}) {
    EXPECT_EQ(Metric(absl::StrCat("pkv_rpc_requests_total{code=\"INVALID_ARGUMENT\",method=\"",
                                  method, "\"}")),
              1);
    EXPECT_EQ(Metric(absl::StrCat("pkv_rpc_inflight{method=\"", method, "\"}")), 0);
  }
}

}  // namespace
}  // namespace pkv
