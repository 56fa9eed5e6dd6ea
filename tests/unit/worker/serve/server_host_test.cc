#include "worker/serve/server_host.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "proto/metrics/metric_registry.h"
#include "tests/support/health_check.h"
#include "tests/support/run_binary.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_worker.h"

namespace pkv {
namespace {

using testing::HasSubstr;

TEST(CheckListenAddressTest, TakesLoopbackWithoutALeave) {
  for (const char* address :
       {"127.0.0.1:0", "127.255.0.9:65535", "localhost:7441", "[::1]:7441", "unix:/run/pkv.sock"}) {
    EXPECT_THAT(CheckListenAddress(address, false), IsOk()) << address;
  }
}

TEST(CheckListenAddressTest, TakesOtherAddressesOnlyWithALeave) {
  for (const char* address : {"0.0.0.0:7441", "[::]:7441", "10.0.0.1:1", "example.com:80",
                              "127.0.0.1.example.com:80", "128.0.0.1:80", "localhost.com:1"}) {
    EXPECT_THAT(CheckListenAddress(address, false),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         testing::AllOf(HasSubstr(address), HasSubstr("--i-understand-insecure"))));
    EXPECT_THAT(CheckListenAddress(address, true), IsOk()) << address;
  }
}

TEST(CheckListenAddressTest, RefusesWhatIsNoAddress) {
  for (const char* address : {"", "localhost", ":7441", "127.0.0.1:", "127.0.0.1:x",
                              "127.0.0.1:65536", "127.0.0.1:-1", "unix:relative", "7441"}) {
    for (const bool allow : {false, true}) {
      EXPECT_THAT(CheckListenAddress(address, allow),
                  StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("is not host:port")))
          << address;
    }
  }
}

TEST(IsWildcardTest, TellsWhatOthersCannotConnectTo) {
  for (const char* address :
       {"0.0.0.0:7441", "[::]:7441", "*:7441", "127.0.0.1:0", "unix:/run/pkv.sock"}) {
    EXPECT_THAT(IsWildcard(address), IsOkAndHolds(true)) << address;
  }
  for (const char* address : {"127.0.0.1:7441", "10.0.0.7:1", "prefill:7441", "[fd00::7]:7441"}) {
    EXPECT_THAT(IsWildcard(address), IsOkAndHolds(false)) << address;
  }
  EXPECT_THAT(IsWildcard("7441"), StatusIs(absl::StatusCode::kInvalidArgument));
}

// A real worker process over a tiny model; its cache is not there.
class ServerHostTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { folder_ = new TinyModelFolder; }
  static void TearDownTestSuite() { delete folder_; }

  std::vector<std::string> Arguments(const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {BinaryPath("worker/pkv-prefill"),
                                          "serve",
                                          "--model",
                                          folder_->path(),
                                          "--cache",
                                          "unix:/nonexistent"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  // Starts it and waits until it serves.
  void Start(const std::string& listen, const std::vector<std::string>& more = {}) {
    const std::string port_file = scratch_.path() + "/port";
    std::vector<std::string> arguments = {"--listen",    listen,        "--metrics-listen",
                                          "127.0.0.1:0", "--port-file", port_file};
    arguments.insert(arguments.end(), more.begin(), more.end());
    process_ = std::make_unique<ChildProcess>(Arguments(arguments), scratch_.path() + "/worker");
    WaitForFile(port_file);
    std::ifstream(port_file) >> port_ >> metrics_port_ >> health_port_;
    ASSERT_GT(metrics_port_, 0) << process_->err();
  }
  static void ExpectConnects(const std::string& address) {
    const auto channel = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
    EXPECT_TRUE(
        channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(30)));
  }
  int WaitForExit() { return process_->Wait(std::chrono::seconds(60)); }

  static inline TinyModelFolder* folder_ = nullptr;
  const ScratchFolder scratch_;
  std::unique_ptr<ChildProcess> process_;
  int port_ = 0, metrics_port_ = 0, health_port_ = 0;
};

TEST_F(ServerHostTest, ServesOnThePortItNamesAndEndsOnSigterm) {
  Start("127.0.0.1:0");
  ASSERT_GT(port_, 0);
  const auto channel =
      grpc::CreateChannel(absl::StrCat("127.0.0.1:", port_), grpc::InsecureChannelCredentials());
  EXPECT_TRUE(
      channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(30)));
  ChildProcess curl(
      {"/usr/bin/curl", "-fsS", absl::StrCat("http://127.0.0.1:", metrics_port_, "/metrics")},
      scratch_.path() + "/curl");
  ASSERT_EQ(curl.Wait(std::chrono::seconds(30)), 0) << curl.err();
  EXPECT_THAT(curl.out(), HasSubstr("pkv_worker_requests_total{"));
  EXPECT_THAT(curl.out(), HasSubstr("process_resident_memory_bytes"));
  process_->Signal(SIGTERM);
  EXPECT_EQ(WaitForExit(), 0) << process_->err();
  EXPECT_THAT(process_->err(), HasSubstr("stopped"));
}

TEST_F(ServerHostTest, ServesOnAUnixSocketAndEndsOnSigint) {
  const std::string socket = "unix:" + scratch_.path() + "/socket";
  Start(socket);
  ExpectConnects(socket);
  process_->Signal(SIGINT);
  EXPECT_EQ(WaitForExit(), 0) << process_->err();
}

TEST_F(ServerHostTest, AnswersHealthChecksOnAPortOfTheirOwnToo) {
  Start("127.0.0.1:0", {"--health-listen", "127.0.0.1:0"});
  ASSERT_GT(health_port_, 0);
  for (const int port : {port_, health_port_}) {
    const std::string address = absl::StrCat("127.0.0.1:", port);
    EXPECT_THAT(IsServing(address, "pkv-readiness"), IsOkAndHolds(true));
    EXPECT_THAT(IsServing(address, "pkv-liveness"), IsOkAndHolds(true));
    EXPECT_THAT(IsServing(address, ""), IsOkAndHolds(true));
  }
  EXPECT_THAT(
      CallWithBytes(absl::StrCat("127.0.0.1:", health_port_), "/pkv.v1.Prefill/Prefill", ""),
      StatusIs(absl::StatusCode::kUnimplemented));
  process_->Signal(SIGTERM);
  EXPECT_EQ(WaitForExit(), 0) << process_->err();
}

// Its weights are a pipe that nobody opens to write: it never gets beyond opening it.
TEST_F(ServerHostTest, IsAliveButNotReadyWhileTheModelLoads) {
  const std::string model = scratch_.path() + "/model";
  std::filesystem::copy(folder_->path(), model);
  std::filesystem::remove(model + "/model.safetensors");
  ASSERT_EQ(mkfifo((model + "/model.safetensors").c_str(), 0600), 0);
  const std::string health = "unix:" + scratch_.path() + "/health";
  ChildProcess process({BinaryPath("worker/pkv-decode"), "serve", "--model", model, "--cache",
                        "unix:/nonexistent", "--health-listen", health},
                       scratch_.path() + "/loading");
  WaitForFile(scratch_.path() + "/health");
  EXPECT_THAT(IsServing(health, "pkv-liveness"), IsOkAndHolds(true));
  EXPECT_THAT(IsServing(health, "pkv-readiness"), IsOkAndHolds(false));
  EXPECT_THAT(IsServing(health, ""), IsOkAndHolds(false));
  process.Signal(SIGKILL);
  process.Wait(std::chrono::seconds(60));
}

TEST_F(ServerHostTest, RefusesAPortThatIsTaken) {
  Start("127.0.0.1:0");
  ChildProcess second(Arguments({"--listen", absl::StrCat("127.0.0.1:", port_)}),
                      scratch_.path() + "/second");
  EXPECT_EQ(second.Wait(std::chrono::seconds(60)), 1);
  EXPECT_THAT(second.err(), HasSubstr("cannot listen on"));
  ChildProcess third(Arguments({"--listen", "127.0.0.1:0", "--metrics-listen",
                                absl::StrCat("127.0.0.1:", metrics_port_)}),
                     scratch_.path() + "/third");
  EXPECT_EQ(third.Wait(std::chrono::seconds(60)), 1);
  EXPECT_THAT(third.err(), HasSubstr("cannot serve metrics on"));
  ChildProcess fourth(
      Arguments({"--listen", "127.0.0.1:0", "--health-listen", absl::StrCat("127.0.0.1:", port_)}),
      scratch_.path() + "/fourth");
  EXPECT_EQ(fourth.Wait(std::chrono::seconds(60)), 1);
}

TEST_F(ServerHostTest, RefusesAddressesBeyondLoopback) {
  const BinaryRun run = RunBinary("worker/pkv-decode",
                                  {"serve", "--model", folder_->path(), "--listen", "0.0.0.0:0"});
  EXPECT_EQ(run.exit_code, 2);
  EXPECT_THAT(run.err, HasSubstr("not loopback"));
  const BinaryRun metrics =
      RunBinary("worker/pkv-decode", {"serve", "--model", folder_->path(), "--listen",
                                      "127.0.0.1:0", "--metrics-listen", "unix:/run/metrics"});
  EXPECT_EQ(metrics.exit_code, 2);
  EXPECT_THAT(metrics.err, HasSubstr("is not host:port"));
}

TEST_F(ServerHostTest, FailsWhenThePortFileCannotBeWritten) {
  const BinaryRun run =
      RunBinary("worker/pkv-decode", {"serve", "--model", folder_->path(), "--listen",
                                      "127.0.0.1:0", "--port-file", "/nonexistent/port"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("cannot write port file /nonexistent/port"));
}

// In a process of its own: signals are blocked and raised.
TEST(ServingFaultDeathTest, EndsServingWithWhatWasReportedFirst) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  const auto serve = [] {
    BlockTerminationSignals();
    ServingFault fault;
    int num_drains = 0;
    ServerHostOptions options;
    options.listen = "127.0.0.1:0";
    options.fault = &fault;
    options.on_drain = [&num_drains] { ++num_drains; };
    std::thread reporter([&fault] {
      fault.Report(absl::InternalError("the device is lost"));
      fault.Report(absl::InternalError("again"));
    });
    const absl::Status status = ServeUntilSignal(options, {}, std::make_shared<MetricRegistry>());
    reporter.join();
    const bool first = status == absl::InternalError("the device is lost");
    std::_Exit(first && num_drains == 1 ? 7 : 8);
  };
  EXPECT_EXIT(serve(), testing::ExitedWithCode(7), "the device is lost");
}

TEST(ServingFaultTest, IsFineUntilSomethingIsReported) {
  EXPECT_THAT(ServingFault().status(), IsOk());
}

}  // namespace
}  // namespace pkv
