// Goal: whatever a settings file holds, it is read to an end: each key once, every line one of the
// file's. What the values mean is not asked here. Method: the input is the file.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <set>
#include <string>

#include "proto/config/config_file.h"

namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const pkv::ConfigFile file = pkv::ParseConfigFile(text);
  const auto ends = std::count(text.begin(), text.end(), '\n');
  std::set<std::string> keys;
  for (const pkv::FileEntry& entry : file.entries) {
    Require(keys.insert(entry.key).second);
    Require(entry.line >= 1 && entry.line <= ends + 1);
  }
  for (const pkv::FileProblem& problem : file.problems) {
    Require(!problem.what.empty());
    Require(problem.line >= 1 && problem.line <= ends + 1);
  }
  return 0;
}
