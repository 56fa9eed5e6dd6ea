#include "kvstore/service/cache_server.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "pkv/v1/cache_service.grpc.pb.h"
#include "pkv/v1/handoff.grpc.pb.h"
#include "proto/transport/convert.h"
#include "proto/transport/host_identity.h"
#include "proto/transport/local_socket.h"
#include "proto/transport/nccl/nccl_port.h"
#include "proto/transport/shm_frame.h"
#include "tests/support/fake_pair_calls.h"
#include "tests/support/health_check.h"
#include "tests/support/scratch_folder.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

CacheServerOptions LocalOptions() {
  return {.listen = "127.0.0.1:0", .metrics_listen = "127.0.0.1:0", .capacity_bytes = 1 << 20};
}

grpc::Status Stats(const std::string& address, v1::StatsResponse& response) {
  const auto stub =
      v1::Admin::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
  return stub->Stats(&context, {}, &response);
}

std::string HttpGet(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_port = htons(static_cast<uint16_t>(port));
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&name), sizeof(name)) == 0) {
    const std::string request = absl::StrCat("GET ", path, " HTTP/1.0\r\n\r\n");
    EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
    char buffer[4096];
    for (ssize_t got; (got = read(fd, buffer, sizeof(buffer))) > 0;) answer.append(buffer, got);
  }
  close(fd);
  return answer;
}

TEST(CacheServerTest, ServesOverTcp) {
  const auto server = CacheServer::Start(LocalOptions());
  ASSERT_THAT(server, IsOk());
  v1::StatsResponse response;
  EXPECT_THAT(FromGrpc(Stats(absl::StrCat("127.0.0.1:", (*server)->port()), response)), IsOk());
  EXPECT_EQ(response.capacity_bytes(), 1u << 20);
}

// Notes whether a socket is there while memory is pinned.
class PinningCalls : public FakePairCalls {
 public:
  explicit PinningCalls(std::string socket)
      : FakePairCalls(std::make_shared<FakeLink>(), nullptr), socket_(std::move(socket)) {}
  absl::Status RegisterHost(std::byte* data, uint64_t bytes) override {
    has_pinned = true;
    was_listening = access(socket_.c_str(), F_OK) == 0;
    return FakePairCalls::RegisterHost(data, bytes);
  }
  bool has_pinned = false, was_listening = false;

 private:
  const std::string socket_;
};

TEST(CacheServerTest, ListensOnlyOnceMemoryIsPinned) {
  CacheServerOptions options = LocalOptions();
  const std::string path = absl::StrCat(::testing::TempDir(), "/cache_server_pins.", getpid());
  options.listen = absl::StrCat("unix:", path);
  const auto calls = std::make_shared<PinningCalls>(path);
  options.nccl = std::make_shared<const NcclPort>(NcclPort{.calls = calls, .capability = {}});
  const auto server = CacheServer::Start(options);
  ASSERT_THAT(server, IsOk());
  EXPECT_TRUE(calls->has_pinned);
  EXPECT_FALSE(calls->was_listening);
  EXPECT_EQ(access(path.c_str(), F_OK), 0);
}

TEST(CacheServerTest, ServesOverAUnixSocket) {
  CacheServerOptions options = LocalOptions();
  options.listen = absl::StrCat("unix:", ::testing::TempDir(), "/cache_server.", getpid());
  const auto server = CacheServer::Start(options);
  ASSERT_THAT(server, IsOk());
  v1::StatsResponse response;
  EXPECT_THAT(FromGrpc(Stats(options.listen, response)), IsOk());
}

TEST(CacheServerTest, ServesMetrics) {
  const auto server = CacheServer::Start(LocalOptions());
  ASSERT_THAT(server, IsOk());
  const std::string text = HttpGet((*server)->metrics_port(), "/metrics");
  for (const char* series : {"pkv_build_info{", "process_resident_memory_bytes ",
                             "pkv_tier_capacity_bytes{tier=\"dram\"} 1048576",
                             "pkv_admission_inflight_bytes 0", "pkv_draining 0"}) {
    EXPECT_THAT(text, HasSubstr(series));
  }
  (*server)->Drain();
  EXPECT_THAT(HttpGet((*server)->metrics_port(), "/metrics"), HasSubstr("pkv_draining 1"));
}

v1::HandoffOpenResponse OpenHandoff(int port) {
  const auto stub = v1::Handoff::NewStub(
      grpc::CreateChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
  v1::HandoffOpenRequest request;
  request.set_shm_version(kShmVersion);
  request.set_host_id(HostIdentity());
  v1::HandoffOpenResponse response;
  EXPECT_THAT(FromGrpc(stub->Open(&context, request, &response)), IsOk());
  return response;
}

TEST(CacheServerTest, OffersShmWhenItHasASocketForIt) {
  CacheServerOptions options = LocalOptions();
  {
    const auto server = CacheServer::Start(options);
    ASSERT_THAT(server, IsOk());
    const v1::HandoffOpenResponse response = OpenHandoff((*server)->port());
    EXPECT_FALSE(response.has_shm());
    EXPECT_THAT(response.reason(), HasSubstr("no shm socket"));
  }
  options.shm_socket = absl::StrCat(::testing::TempDir(), "/cache_server.shm.", getpid());
  const auto server = CacheServer::Start(options);
  ASSERT_THAT(server, IsOk());
  EXPECT_EQ(OpenHandoff((*server)->port()).shm().socket_path(), options.shm_socket);
  EXPECT_THAT(ConnectLocal(options.shm_socket, absl::Seconds(60)), IsOk());
  (*server)->Shutdown(absl::Seconds(1));
  EXPECT_FALSE(ConnectLocal(options.shm_socket, absl::Seconds(60)).ok());
}

TEST(CacheServerTest, AnswersHealthChecksOnAPortOfTheirOwnToo) {
  CacheServerOptions options = LocalOptions();
  options.health_listen = "127.0.0.1:0";
  const auto server = CacheServer::Start(options);
  ASSERT_THAT(server, IsOk());
  for (const bool ready : {true, false}) {
    if (!ready) (*server)->Drain();
    for (const int port : {(*server)->port(), (*server)->health_port()}) {
      const std::string address = absl::StrCat("127.0.0.1:", port);
      EXPECT_THAT(IsServing(address, "pkv-readiness"), IsOkAndHolds(ready));
      EXPECT_THAT(IsServing(address, ""), IsOkAndHolds(ready));
      EXPECT_THAT(IsServing(address, "pkv-liveness"), IsOkAndHolds(true));
    }
  }
  (*server)->Shutdown(absl::Seconds(1));
  EXPECT_THAT(IsServing(absl::StrCat("127.0.0.1:", (*server)->health_port()), "pkv-liveness"),
              IsOkAndHolds(true));
}

TEST(CacheServerTest, RefusesARemoteAddressUnlessToldSo) {
  CacheServerOptions options = LocalOptions();
  options.listen = "0.0.0.0:0";
  EXPECT_THAT(CacheServer::Start(options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--i-understand-insecure")));
  // Health checks tell a stranger nothing.
  CacheServerOptions health = LocalOptions();
  health.health_listen = "0.0.0.0:0";
  EXPECT_THAT(CacheServer::Start(health), IsOk());
  options.allow_insecure_remote = true;
  EXPECT_THAT(CacheServer::Start(options), IsOk());
}

TEST(CacheServerTest, RefusesAnAddressInUse) {
  const auto first = CacheServer::Start(LocalOptions());
  ASSERT_THAT(first, IsOk());
  CacheServerOptions options = LocalOptions();
  options.listen = absl::StrCat("127.0.0.1:", (*first)->port());
  EXPECT_THAT(CacheServer::Start(options), StatusIs(absl::StatusCode::kUnavailable));
  options = LocalOptions();
  options.metrics_listen = absl::StrCat("127.0.0.1:", (*first)->metrics_port());
  EXPECT_THAT(CacheServer::Start(options),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("metrics")));
}

TEST(CacheServerTest, RefusesAStallTimeoutThatIsTooShort) {
  CacheServerOptions options = LocalOptions();
  options.stall_timeout = absl::Milliseconds(99);
  EXPECT_THAT(CacheServer::Start(options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("99ms")));
}

TEST(CacheServerTest, AcceptsNothingAfterShutdown) {
  const auto server = CacheServer::Start(LocalOptions());
  ASSERT_THAT(server, IsOk());
  const int metrics_port = (*server)->metrics_port();
  (*server)->Drain();
  (*server)->Shutdown(absl::Seconds(1));
  (*server)->Shutdown(absl::Seconds(1));
  const int port = (*server)->port();
  EXPECT_EQ(HttpGet(port, "/"), "");
  EXPECT_THAT(HttpGet(metrics_port, "/metrics"), HasSubstr("pkv_draining 1"));
}

TEST(CacheServerTest, ChecksItsDiskOptions) {
  CacheServerOptions options = LocalOptions();
  options.ssd_dir = "/tmp/x";
  EXPECT_THAT(CacheServer::Check(options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("both or none")));
  options.ssd_capacity_bytes = 4096;
  EXPECT_THAT(CacheServer::Check(options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("below 1048576")));
  options.ssd_capacity_bytes = 1 << 20;
  EXPECT_THAT(CacheServer::Check(options), IsOk());
  options.ssd_read_timeout = options.stall_timeout;
  EXPECT_THAT(CacheServer::Check(options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("stall timeout")));
  options.ssd_dir.clear();
  EXPECT_THAT(CacheServer::Check(options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("both or none")));
}

TEST(CacheServerTest, NamesTheFolderOnDiskThatItCannotUse) {
  const ScratchFolder folder;
  CacheServerOptions options = LocalOptions();
  options.ssd_dir = folder.path();
  options.ssd_capacity_bytes = uint64_t{1} << 62;
  EXPECT_THAT(CacheServer::Start(options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(folder.path())));
  options.ssd_capacity_bytes = 1 << 20;
  folder.Write("notes.txt", "mine");
  EXPECT_THAT(CacheServer::Start(options),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("notes.txt")));
}

}  // namespace
}  // namespace pkv
