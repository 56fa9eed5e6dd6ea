#ifndef PKV_TESTS_SUPPORT_ARENA_MEMORY_H_
#define PKV_TESTS_SUPPORT_ARENA_MEMORY_H_

// Changes stored bytes, as failing DRAM would. The arena's file is sealed against writing, so this
// goes through the memory of the process that owns it.

#include <fcntl.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace pkv {

// Thread-compatible.
class ArenaMemory {
 public:
  // The arena of `pid`: its first writable mapping of a memfd of ours, if `capacity_bytes` is not 0
  // one of that size.
  explicit ArenaMemory(pid_t pid, uint64_t capacity_bytes = 0) {
    const std::string process = "/proc/" + std::to_string(pid);
    std::ifstream maps(process + "/maps");
    for (std::string line; std::getline(maps, line);) {
      if (line.find("memfd:pkv-arena") == std::string::npos ||
          line.find(" rw-s ") == std::string::npos) {
        continue;
      }
      std::istringstream range(line);
      uint64_t begin = 0, end = 0;
      char dash = 0;
      range >> std::hex >> begin >> dash >> end;
      if (capacity_bytes != 0 && end - begin != capacity_bytes) continue;
      begins_.push_back(begin);
      bytes_.push_back(end - begin);
    }
    memory_ = ::open((process + "/mem").c_str(), O_RDWR | O_CLOEXEC);
  }
  ~ArenaMemory() {
    if (memory_ >= 0) ::close(memory_);
  }
  ArenaMemory(const ArenaMemory&) = delete;
  ArenaMemory& operator=(const ArenaMemory&) = delete;

  bool found() const { return memory_ >= 0 && !begins_.empty(); }

  // Flips one bit of the byte `offset` behind the first place where `content` stands. False when it
  // stands nowhere.
  bool FlipBit(const std::string& content, uint64_t offset, int bit = 0) {
    for (size_t i = 0; i < begins_.size(); ++i) {
      const int64_t at = Find(begins_[i], bytes_[i], content);
      if (at < 0) continue;
      const auto where = static_cast<off_t>(begins_[i] + static_cast<uint64_t>(at) + offset);
      char byte = 0;
      if (::pread(memory_, &byte, 1, where) != 1) return false;
      byte = static_cast<char>(byte ^ (1 << bit));
      return ::pwrite(memory_, &byte, 1, where) == 1;
    }
    return false;
  }

 private:
  // Where `content` stands behind `begin`, or -1.
  int64_t Find(uint64_t begin, uint64_t bytes, const std::string& content) const {
    constexpr uint64_t kPiece = uint64_t{1} << 20;
    std::string piece;
    for (uint64_t at = 0; at < bytes; at += kPiece) {
      piece.resize(std::min(kPiece + content.size(), bytes - at));
      const ssize_t got =
          ::pread(memory_, piece.data(), piece.size(), static_cast<off_t>(begin + at));
      if (got <= 0) return -1;
      piece.resize(static_cast<size_t>(got));
      const size_t found = piece.find(content);
      if (found != std::string::npos) return static_cast<int64_t>(at + found);
    }
    return -1;
  }

  int memory_ = -1;
  std::vector<uint64_t> begins_, bytes_;
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_ARENA_MEMORY_H_
