// Goal: the stream over real gRPC keeps the promises of MessageStream: order, one end, no callback
// after destruction. Method: a scripted server on a loopback port, in this process.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "client/connection.h"
#include "proto/base/sync.h"
#include "proto/transport/data_frame.h"
#include "tests/support/scripted_server.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

constexpr absl::Duration kLong = absl::Seconds(60);

// Keeps what it is told.
class Recorder final : public StreamReceiver {
 public:
  absl::Status OnMessage(grpc::ByteBuffer& message) override {
    v1::PutReply reply;
    grpc::Slice slice;
    PKV_CHECK(message.DumpToSingleSlice(&slice).ok());
    PKV_CHECK(reply.ParseFromArray(slice.begin(), static_cast<int>(slice.size())));
    MutexLock lock(&mu_);
    indices_.push_back(reply.receipt().object_index());
    changed_.SignalAll();
    return answer_;
  }
  void OnSent() override {
    MutexLock lock(&mu_);
    ++num_sent_;
    changed_.SignalAll();
  }
  void OnEnd(const absl::Status& status) override {
    MutexLock lock(&mu_);
    ++num_ends_;
    end_ = status;
    changed_.SignalAll();
  }

  absl::Status WaitForEnd() {
    MutexLock lock(&mu_);
    while (num_ends_ == 0) changed_.Wait(&mu_);
    return end_;
  }
  void WaitForMessages(size_t count) {
    MutexLock lock(&mu_);
    while (indices_.size() < count && num_ends_ == 0) changed_.Wait(&mu_);
  }
  // Of OnMessage, from now on.
  void Answer(const absl::Status& status) {
    MutexLock lock(&mu_);
    answer_ = status;
  }
  std::vector<uint32_t> indices() {
    MutexLock lock(&mu_);
    return indices_;
  }
  int num_sent() {
    MutexLock lock(&mu_);
    return num_sent_;
  }
  int num_ends() {
    MutexLock lock(&mu_);
    return num_ends_;
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::vector<uint32_t> indices_ ABSL_GUARDED_BY(mu_);
  int num_sent_ ABSL_GUARDED_BY(mu_) = 0;
  int num_ends_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status end_ ABSL_GUARDED_BY(mu_);
  absl::Status answer_ ABSL_GUARDED_BY(mu_);
};

grpc::ByteBuffer CommitMessage(uint32_t object_index) {
  v1::FrameControl control;
  control.mutable_put_commit()->set_object_index(object_index);
  return EncodeDataFrame(control, {});
}

// Answers each commit with a receipt of the same index.
grpc::Status Echo(grpc::ServerContext*,
                  grpc::ServerReaderWriter<v1::PutReply, v1::DataFrame>* stream) {
  v1::DataFrame frame;
  while (stream->Read(&frame)) {
    v1::PutReply reply;
    reply.mutable_receipt()->set_object_index(frame.control().put_commit().object_index());
    stream->Write(reply);
  }
  return grpc::Status::OK;
}

class GrpcConnectionTest : public testing::Test {
 protected:
  GrpcConnectionTest() {
    ClientOptions options;
    options.address = server_.address();
    connection_ = MakeGrpcConnection(options);
  }

  ScriptedServer server_;
  std::unique_ptr<Connection> connection_;
};

TEST_F(GrpcConnectionTest, CarriesMessagesInOrderAndEndsOnce) {
  server_.put = Echo;
  Recorder recorder;
  {
    auto stream = connection_->OpenStream(StreamMethod::kPut, kLong, &recorder);
    for (uint32_t i = 0; i < 100; ++i) stream->Send(CommitMessage(i));
    stream->HalfClose();
    EXPECT_THAT(recorder.WaitForEnd(), IsOk());
  }
  const std::vector<uint32_t> indices = recorder.indices();
  ASSERT_EQ(indices.size(), 100u);
  for (uint32_t i = 0; i < 100; ++i) EXPECT_EQ(indices[i], i);
  EXPECT_EQ(recorder.num_sent(), 100);
  EXPECT_EQ(recorder.num_ends(), 1);
}

TEST_F(GrpcConnectionTest, ReportsTheStatusOfTheServer) {
  server_.put = [](auto*, auto*) {
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "arena full");
  };
  Recorder recorder;
  auto stream = connection_->OpenStream(StreamMethod::kPut, kLong, &recorder);
  EXPECT_THAT(recorder.WaitForEnd(), StatusIs(absl::StatusCode::kResourceExhausted, "arena full"));
}

TEST_F(GrpcConnectionTest, CountsEveryMessageAsSentEvenWhenItIsDropped) {
  server_.put = [](auto*, auto*) { return grpc::Status::OK; };
  Recorder recorder;
  {
    auto stream = connection_->OpenStream(StreamMethod::kPut, kLong, &recorder);
    for (uint32_t i = 0; i < 50; ++i) stream->Send(CommitMessage(i));
    recorder.WaitForEnd().IgnoreError();
    for (uint32_t i = 0; i < 50; ++i) stream->Send(CommitMessage(i));
    stream->HalfClose();
  }
  EXPECT_EQ(recorder.num_sent(), 100);
}

TEST_F(GrpcConnectionTest, DestructionCancelsACallThatHangs) {
  server_.put = WaitForCancel;
  Recorder recorder;
  connection_->OpenStream(StreamMethod::kPut, kLong, &recorder).reset();
  EXPECT_EQ(recorder.num_ends(), 1);
  EXPECT_THAT(recorder.WaitForEnd(), StatusIs(absl::StatusCode::kCancelled));
}

TEST_F(GrpcConnectionTest, DeadlineEndsACallThatHangs) {
  server_.put = WaitForCancel;
  Recorder recorder;
  auto stream = connection_->OpenStream(StreamMethod::kPut, absl::Milliseconds(50), &recorder);
  EXPECT_THAT(recorder.WaitForEnd(), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(GrpcConnectionTest, RefusedMessageEndsTheStreamWithItsStatus) {
  server_.put = Echo;
  Recorder recorder;
  auto stream = connection_->OpenStream(StreamMethod::kPut, kLong, &recorder);
  stream->Send(CommitMessage(1));
  recorder.WaitForMessages(1);
  recorder.Answer(absl::DataLossError("bad frame"));
  stream->Send(CommitMessage(2));
  EXPECT_THAT(recorder.WaitForEnd(), StatusIs(absl::StatusCode::kDataLoss, "bad frame"));
}

TEST_F(GrpcConnectionTest, GetSendsOneRequestAndReceivesAStream) {
  server_.get = [](grpc::ServerContext*, const v1::GetRequest* request,
                   grpc::ServerWriter<v1::DataFrame>* writer) {
    for (uint32_t i = 0; i < request->layer_end(); ++i) writer->Write(v1::DataFrame());
    return grpc::Status::OK;
  };
  v1::GetRequest request;
  request.set_layer_end(5);
  Recorder recorder;
  auto stream = connection_->OpenStream(StreamMethod::kGet, kLong, &recorder);
  stream->Send(ToBuffer(request));
  stream->HalfClose();
  EXPECT_THAT(recorder.WaitForEnd(), IsOk());
  EXPECT_EQ(recorder.indices().size(), 5u);
}

TEST_F(GrpcConnectionTest, UnaryCallReachesTheServerWithADeadline) {
  server_.lookup = [](grpc::ServerContext* context, const v1::LookupRequest* request,
                      v1::LookupResponse* response) {
    EXPECT_LT(context->deadline(), std::chrono::system_clock::now() + std::chrono::minutes(2));
    response->set_num_blocks(static_cast<uint32_t>(request->prefix_ids_size()));
    return grpc::Status::OK;
  };
  v1::LookupRequest request;
  request.add_prefix_ids("x");
  v1::LookupResponse response;
  EXPECT_THAT(connection_->Lookup(request, kLong, response), IsOk());
  EXPECT_EQ(response.num_blocks(), 1u);
  v1::StatResponse stat;
  EXPECT_THAT(connection_->Stat({}, kLong, stat), StatusIs(absl::StatusCode::kUnimplemented));
}

TEST(GrpcConnectionAwayTest, CallsWithoutAServerAreUnavailable) {
  ClientOptions options;
  options.address = "unix:/nonexistent/pkvd.sock";
  const auto connection = MakeGrpcConnection(options);
  v1::LookupResponse response;
  EXPECT_THAT(connection->Lookup({}, kLong, response), StatusIs(absl::StatusCode::kUnavailable));
  Recorder recorder;
  auto stream = connection->OpenStream(StreamMethod::kPut, kLong, &recorder);
  stream->Send(CommitMessage(1));
  EXPECT_THAT(recorder.WaitForEnd(), StatusIs(absl::StatusCode::kUnavailable));
}

}  // namespace
}  // namespace pkv
