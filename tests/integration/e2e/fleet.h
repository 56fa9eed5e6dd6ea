#ifndef PKV_TESTS_INTEGRATION_E2E_FLEET_H_
#define PKV_TESTS_INTEGRATION_E2E_FLEET_H_

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/child_process.h"

namespace pkv {

// The three real processes on loopback, and pkvctl to drive them.
class Fleet : public ::testing::Test {
 protected:
  // Any one start may be slow under a sanitizer on a busy machine; a working one takes a second.
  static constexpr std::chrono::seconds kPatience{120};

  struct Result {
    int exit_code = -1;
    nlohmann::json json;
    std::string err;
  };

  void SetUp() override {
    const char* binary_dir = std::getenv("PKV_BINARY_DIR");
    const char* source_dir = std::getenv("PKV_SOURCE_DIR");
    ASSERT_TRUE(binary_dir != nullptr && source_dir != nullptr) << "run through ctest";
    bin_ = binary_dir;
    model_ = std::string(source_dir) + "/deploy/models/novella-14m";
    std::string scratch = ::testing::TempDir() + "pkv-fleet-XXXXXX";
    ASSERT_NE(::mkdtemp(scratch.data()), nullptr);
    scratch_ = scratch;
  }
  void TearDown() override {
    decode_.reset();
    prefill_.reset();
    pkvd_.reset();
    std::filesystem::remove_all(scratch_);
  }

  void StartPkvd(const std::string& listen = "127.0.0.1:0") {
    std::vector<std::string> arguments = {bin_ + "/kvstore/pkvd", "--capacity", "256MiB"};
    arguments.insert(arguments.end(), more_for_pkvd_.begin(), more_for_pkvd_.end());
    pkvd_ = Start("pkvd", arguments, listen, cache_port_, cache_metrics_port_);
    cache_ = "127.0.0.1:" + cache_port_;
  }
  void StartWorkers() {
    std::vector<std::string> arguments = {"", "serve", "--model", model_, "--cache", cache_};
    arguments.insert(arguments.end(), more_for_workers_.begin(), more_for_workers_.end());
    arguments[0] = bin_ + "/worker/pkv-prefill";
    prefill_ = Start("prefill", arguments, "127.0.0.1:0", prefill_port_, prefill_metrics_port_);
    arguments[0] = bin_ + "/worker/pkv-decode";
    decode_ = Start("decode", arguments, "127.0.0.1:0", decode_port_, decode_metrics_port_);
  }

  // The sum over pkvd's series whose text begins so.
  double Metric(const std::string& name) {
    const std::string url = "http://127.0.0.1:" + cache_metrics_port_ + "/metrics";
    ChildProcess curl({"/usr/bin/curl", "-fsS", url}, scratch_ + "/curl");
    EXPECT_EQ(curl.Wait(kPatience), 0) << curl.err();
    double sum = 0;
    std::istringstream lines(curl.out());
    for (std::string line; std::getline(lines, line);) {
      if (line.rfind(name, 0) == 0) sum += std::stod(line.substr(line.rfind(' ') + 1));
    }
    return sum;
  }

  // Runs pkvctl with --output json.
  Result Ctl(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(),
                     {bin_ + "/worker/pkvctl", "--output", "json", "--cache", cache_});
    ChildProcess process(arguments, scratch_ + "/ctl");
    Result result;
    result.exit_code = process.Wait(kPatience);
    result.err = process.err();
    result.json = nlohmann::json::parse(process.out(), nullptr, /*allow_exceptions=*/false);
    return result;
  }
  // generate through both workers.
  Result Generate(const std::string& preset, const std::string& prompt, int max_tokens,
                  const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"generate",
                                          "--prefill",
                                          "127.0.0.1:" + prefill_port_,
                                          "--decode",
                                          "127.0.0.1:" + decode_port_,
                                          "--preset",
                                          preset,
                                          "--prompt",
                                          prompt,
                                          "--max-tokens",
                                          std::to_string(max_tokens)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Ctl(arguments);
  }
  Result GenerateLocally(const std::string& prompt, int max_tokens) {
    return Ctl({"generate", "--local", "--model", model_, "--prompt", prompt, "--max-tokens",
                std::to_string(max_tokens)});
  }

  // The first `bytes` bytes of a document every Debian machine has.
  static std::string Document(size_t bytes) {
    const std::string text = ChildProcess::Read("/usr/share/common-licenses/GPL-3");
    EXPECT_GE(text.size(), bytes);
    return text.substr(0, bytes);
  }

  // Set before the processes start.
  std::vector<std::string> more_for_pkvd_, more_for_workers_;
  std::string bin_, model_, scratch_, cache_;
  std::string cache_port_, cache_metrics_port_;
  std::string prefill_port_, prefill_metrics_port_, decode_port_, decode_metrics_port_;
  std::unique_ptr<ChildProcess> pkvd_, prefill_, decode_;

 private:
  std::unique_ptr<ChildProcess> Start(const std::string& name, std::vector<std::string> arguments,
                                      const std::string& listen, std::string& port,
                                      std::string& metrics_port) {
    const std::string port_file = scratch_ + "/" + name + ".port";
    std::filesystem::remove(port_file);
    for (const std::string& argument :
         {std::string("--listen"), listen, std::string("--metrics-listen"),
          std::string("127.0.0.1:0"), std::string("--port-file"), port_file}) {
      arguments.push_back(argument);
    }
    auto process = std::make_unique<ChildProcess>(arguments, scratch_ + "/" + name);
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (!std::filesystem::exists(port_file) && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    std::ifstream file(port_file);
    file >> port >> metrics_port;
    EXPECT_TRUE(static_cast<bool>(file)) << name << " did not start: " << process->err();
    return process;
  }
};

}  // namespace pkv

#endif  // PKV_TESTS_INTEGRATION_E2E_FLEET_H_
