#ifndef PKV_TESTS_SUPPORT_RUN_BINARY_H_
#define PKV_TESTS_SUPPORT_RUN_BINARY_H_

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/child_process.h"
#include "tests/support/scratch_folder.h"

namespace pkv {

// What a binary left behind. exit_code is -1 when it did not end in time.
struct BinaryRun {
  int exit_code = -1;
  std::string out, err;
};

// The path of a binary of this build: BinaryPath("worker/pkvctl"). Through ctest only.
inline std::string BinaryPath(const std::string& name) {
  const char* folder = std::getenv("PKV_BINARY_DIR");
  EXPECT_NE(folder, nullptr) << "run through ctest";
  return std::string(folder == nullptr ? "." : folder) + "/" + name;
}

inline std::string SourcePath(const std::string& name) {
  const char* folder = std::getenv("PKV_SOURCE_DIR");
  EXPECT_NE(folder, nullptr) << "run through ctest";
  return std::string(folder == nullptr ? "." : folder) + "/" + name;
}

// Runs a binary of this build to its end, for a minute at most.
inline BinaryRun RunBinary(const std::string& name, std::vector<std::string> arguments) {
  const ScratchFolder scratch;
  arguments.insert(arguments.begin(), BinaryPath(name));
  ChildProcess process(arguments, scratch.path() + "/run");
  const int exit_code = process.Wait(std::chrono::seconds(60));
  return {exit_code, process.out(), process.err()};
}

// Until it exists, a minute at most.
inline void WaitForFile(const std::string& path) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!std::filesystem::exists(path) && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_RUN_BINARY_H_
