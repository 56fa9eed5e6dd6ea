#include "proto/transport/local_socket.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

constexpr absl::Duration kShort = absl::Milliseconds(20);

struct SocketPair {
  SocketPair() {
    int fds[2] = {-1, -1};
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    a = FileDescriptor(fds[0]);
    b = FileDescriptor(fds[1]);
  }
  FileDescriptor a, b;
};

std::span<const std::byte> AsBytes(const std::string& text) {
  return std::as_bytes(std::span(text));
}

TEST(LocalSocketTest, RefusesAPathThatIsNoSocketsName) {
  EXPECT_THAT(ConnectLocal("", kShort), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ConnectLocal(std::string(108, 'x'), kShort),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(LocalSocketTest, NobodyListeningIsUnavailable) {
  const std::string path = absl::StrCat(::testing::TempDir(), "/nobody.", getpid());
  EXPECT_THAT(ConnectLocal(path, kShort), StatusIs(absl::StatusCode::kUnavailable));
}

TEST(LocalSocketTest, BytesAndADescriptorArriveTogether) {
  SocketPair pair;
  const FileDescriptor file(memfd_create("passed", MFD_CLOEXEC));
  ASSERT_EQ(pwrite(file.get(), "content", 7, 0), 7);
  EXPECT_THAT(SendSome(pair.a.get(), AsBytes("hello"), file.get()), IsOkAndHolds(5u));
  std::array<std::byte, 64> buffer;
  const auto received = ReceiveSome(pair.b.get(), buffer, /*wait=*/true, /*takes_fd=*/true);
  ASSERT_THAT(received, IsOk());
  EXPECT_EQ(received->num_bytes, 5u);
  ASSERT_TRUE(received->passed_fd);
  EXPECT_EQ(fcntl(received->passed_fd.get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  std::string content(7, ' ');
  EXPECT_EQ(pread(received->passed_fd.get(), content.data(), 7, 0), 7);
  EXPECT_EQ(content, "content");
}

TEST(LocalSocketTest, DescriptorsThatWereNotAskedForAreNotTaken) {
  SocketPair pair;
  const FileDescriptor file(memfd_create("passed", MFD_CLOEXEC));
  EXPECT_THAT(SendSome(pair.a.get(), AsBytes("hello"), file.get()), IsOkAndHolds(5u));
  const int next_fd = dup(pair.a.get());
  close(next_fd);
  std::array<std::byte, 64> buffer;
  const auto received = ReceiveSome(pair.b.get(), buffer, /*wait=*/true, /*takes_fd=*/false);
  ASSERT_THAT(received, IsOk());
  EXPECT_FALSE(received->passed_fd);
  EXPECT_EQ(fcntl(next_fd, F_GETFD), -1) << "a descriptor was installed";
}

TEST(LocalSocketTest, NothingThereIsNoErrorAndDoesNotWait) {
  SocketPair pair;
  std::array<std::byte, 8> buffer;
  const auto received = ReceiveSome(pair.a.get(), buffer, /*wait=*/false, /*takes_fd=*/false);
  ASSERT_THAT(received, IsOk());
  EXPECT_TRUE(received->would_block);
}

TEST(LocalSocketTest, SendingStopsWhenThePeerDoesNotRead) {
  SocketPair pair;
  const std::vector<std::byte> bytes(1 << 20);
  size_t total = 0;
  for (;;) {
    const auto sent = SendSome(pair.a.get(), bytes);
    ASSERT_THAT(sent, IsOk());
    total += *sent;
    if (*sent == 0) break;
  }
  EXPECT_GT(total, 0u);
  pair.b.Close();
  EXPECT_THAT(SendSome(pair.a.get(), bytes), StatusIs(absl::StatusCode::kUnavailable));
}

// What CheckHeld() of a client stands on: a shutdown is seen at once, past bytes that were sent
// before it.
TEST(LocalSocketTest, AHangUpIsSeenBehindUnreadBytes) {
  SocketPair pair;
  EXPECT_FALSE(IsHungUp(pair.a.get()));
  EXPECT_THAT(SendSome(pair.b.get(), AsBytes("last words")), IsOk());
  EXPECT_FALSE(IsHungUp(pair.a.get()));
  shutdown(pair.b.get(), SHUT_RDWR);
  EXPECT_TRUE(IsHungUp(pair.a.get()));
  std::array<std::byte, 64> buffer;
  EXPECT_EQ(ReceiveSome(pair.a.get(), buffer, true, false)->num_bytes, 10u);
  EXPECT_EQ(ReceiveSome(pair.a.get(), buffer, true, false)->num_bytes, 0u);
}

TEST(LocalSocketTest, AClosedDescriptorIsAHangUp) {
  SocketPair pair;
  pair.b.Close();
  EXPECT_TRUE(IsHungUp(pair.a.get()));
}

TEST(LocalSocketTest, KnowsItsPeer) {
  SocketPair pair;
  const auto peer = PeerOf(pair.a.get());
  ASSERT_THAT(peer, IsOk());
  EXPECT_EQ(peer->pid, getpid());
  EXPECT_EQ(peer->uid, getuid());
}

}  // namespace
}  // namespace pkv
