#include "proto/serving/listener.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <future>
#include <latch>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

int ConnectTcp(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_port = htons(static_cast<uint16_t>(port));
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return connect(fd, reinterpret_cast<sockaddr*>(&name), sizeof(name)) == 0 ? fd : -1;
}

std::string SocketPath(const char* name) {
  return absl::StrCat(::testing::TempDir(), "/", name, ".", getpid());
}

TEST(ListenerTest, RefusesWhatIsNoAddress) {
  for (const char* address : {"", "localhost", ":80", "127.0.0.1:", "127.0.0.1:x",
                              "127.0.0.1:65536", "127.0.0.1:-1", "::1:80", "unix:"}) {
    EXPECT_THAT(Listener::Bind(address), StatusIs(absl::StatusCode::kInvalidArgument)) << address;
  }
  EXPECT_THAT(Listener::Bind("unix:" + std::string(200, 'x')),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("200 bytes")));
}

TEST(ListenerTest, PicksAPortAndSaysWhich) {
  const auto listener = Listener::Bind("127.0.0.1:0").value();
  EXPECT_GT(listener->port(), 0);
  EXPECT_TRUE(listener->is_local());
}

TEST(ListenerTest, KnowsWhatOtherHostsCanReach) {
  EXPECT_FALSE(Listener::Bind("0.0.0.0:0").value()->is_local());
  EXPECT_TRUE(Listener::Bind("127.8.9.10:0").value()->is_local());
}

TEST(ListenerTest, AUnixSocketHasThePermissionsAskedFor) {
  for (const mode_t mode : {0600, 0666}) {
    const std::string path = SocketPath("mode");
    const auto listener = Listener::Bind("unix:" + path, mode);
    ASSERT_THAT(listener, IsOk());
    struct stat info {};
    ASSERT_EQ(stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, mode);
  }
}

TEST(ListenerTest, RefusesAPortInUse) {
  const auto first = Listener::Bind("127.0.0.1:0").value();
  EXPECT_THAT(Listener::Bind(absl::StrCat("127.0.0.1:", first->port())),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("in use")));
}

TEST(ListenerTest, HandsOverConnections) {
  const auto listener = Listener::Bind("127.0.0.1:0").value();
  std::promise<int> accepted;
  listener->Start([&](int fd) { accepted.set_value(fd); }, [] {});
  const int client = ConnectTcp(listener->port());
  ASSERT_GE(client, 0);
  const int server = accepted.get_future().get();
  ASSERT_EQ(write(client, "x", 1), 1);
  close(client);
  close(server);
}

TEST(ListenerTest, ReplacesASocketFileNobodyListensOn) {
  const std::string path = SocketPath("stale");
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  std::copy(path.begin(), path.end(), name.sun_path);
  const int dead = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  ASSERT_EQ(bind(dead, reinterpret_cast<sockaddr*>(&name), sizeof(name)), 0);
  close(dead);
  auto listener = Listener::Bind("unix:" + path);
  ASSERT_THAT(listener, IsOk());
  EXPECT_THAT(Listener::Bind("unix:" + path), StatusIs(absl::StatusCode::kUnavailable));
  (*listener)->Stop();
  EXPECT_NE(access(path.c_str(), F_OK), 0) << "the file is removed at the end";
}

// CVE-2023-4785: gRPC's own listener accepts nothing any more after this.
TEST(ListenerTest, AcceptsAgainOnceDescriptorsAreFree) {
  const auto listener = Listener::Bind("127.0.0.1:0").value();
  std::promise<int> accepted;
  std::latch failed(1);
  std::atomic<bool> told{false};
  const int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  // No descriptor is free: the limit is what is open now.
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none = {static_cast<rlim_t>(dup(client)), before.rlim_max};
  close(static_cast<int>(none.rlim_cur));
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  listener->Start([&](int fd) { accepted.set_value(fd); },
                  [&] {
                    if (!told.exchange(true)) failed.count_down();
                  });
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_port = htons(static_cast<uint16_t>(listener->port()));
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(connect(client, reinterpret_cast<sockaddr*>(&name), sizeof(name)), 0);
  failed.wait();
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  close(accepted.get_future().get());
  close(client);
}

}  // namespace
}  // namespace pkv
