#ifndef PKV_TESTS_SUPPORT_SCRATCH_FOLDER_H_
#define PKV_TESTS_SUPPORT_SCRATCH_FOLDER_H_

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"

namespace pkv {

// A folder that is removed with everything in it.
class ScratchFolder {
 public:
  ScratchFolder() : path_(::testing::TempDir() + "pkv-scratch-XXXXXX") {
    if (::mkdtemp(path_.data()) == nullptr) ADD_FAILURE() << "mkdtemp " << path_;
  }
  ~ScratchFolder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  const std::string& path() const { return path_; }
  // Writes one file and returns its path.
  std::string Write(const std::string& name, const std::string& bytes) const {
    const std::string path = absl::StrCat(path_, "/", name);
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }

 private:
  std::string path_;
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_SCRATCH_FOLDER_H_
