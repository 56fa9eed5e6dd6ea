// A flipped bit in pkvd's memory: never served, counted, and the answer is right all the same.

#include <fcntl.h>
#include <unistd.h>

#include <random>

#include "tests/integration/e2e/fleet.h"

namespace pkv {
namespace {

class DamageTest : public Fleet {
 protected:
  // The arena of the running pkvd, opened through /proc: a memfd.
  int OpenArena() const {
    const std::string fds = "/proc/" + std::to_string(pkvd_->pid()) + "/fd";
    for (const auto& entry : std::filesystem::directory_iterator(fds)) {
      std::error_code error;
      const std::string target = std::filesystem::read_symlink(entry.path(), error).string();
      if (target.find("memfd:pkv") != std::string::npos)
        return ::open(entry.path().c_str(), O_RDWR);
    }
    return -1;
  }

  // Where `bytes` stand in the arena, or -1.
  static off_t Find(int arena, const std::string& bytes) {
    constexpr size_t kPiece = size_t{1} << 20;
    std::string piece;
    for (off_t at = 0;; at += kPiece) {
      piece.resize(kPiece + bytes.size());
      const ssize_t got = ::pread(arena, piece.data(), piece.size(), at);
      if (got <= 0) return -1;
      piece.resize(got);
      const size_t found = piece.find(bytes);
      if (found != std::string::npos) return at + static_cast<off_t>(found);
    }
  }

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
};

TEST_F(DamageTest, AFlippedBitInAStoredFrameIsDataLossCountedAndComputedAgain) {
  StartPkvd();
  StartWorkers();
  const std::string prompt = Document(2000);
  const Result whole = Generate("fp16", prompt, 16, {"--refuse-recompute"});
  ASSERT_EQ(whole.exit_code, 0) << whole.err;
  const Result found = Ctl({"lookup", "--model", model_, "--prompt", prompt, "--preset", "fp16"});
  ASSERT_EQ(found.exit_code, 0) << found.err;

  // A bit of the first block's frames, at a seeded place. Header and frame table are 256 + 128
  // bytes.
  const std::string id = found.json["block_ids"][0];
  std::string raw_id;
  for (size_t i = 0; i < id.size(); i += 2)
    raw_id.push_back(static_cast<char>(std::stoi(id.substr(i, 2), nullptr, 16)));
  const int arena = OpenArena();
  ASSERT_GE(arena, 0) << "pkvd has no memfd arena";
  const off_t id_at = Find(arena, raw_id);
  ASSERT_GE(id_at, 0);
  constexpr off_t kIdOffset = 128, kFramesOffset = 384;
  const unsigned seed = 20261122;
  std::mt19937 random(seed);
  const off_t at = id_at - kIdOffset + kFramesOffset + static_cast<off_t>(random() % 700000);
  char byte = 0;
  ASSERT_EQ(::pread(arena, &byte, 1, at), 1);
  byte = static_cast<char>(byte ^ (1 << random() % 8));
  ASSERT_EQ(::pwrite(arena, &byte, 1, at), 1) << "seed " << seed;
  ::close(arena);

  EXPECT_EQ(Metric("pkv_integrity_failures_total"), 0);
  const Result again = Generate("fp16", prompt, 16);
  ASSERT_EQ(again.exit_code, 0) << again.err;
  EXPECT_GT(again.json["decode"]["recomputed_tokens"], 0);
  EXPECT_NE(std::string(again.json["decode"]["recompute_reason"]).find("DATA_LOSS"),
            std::string::npos)
      << again.json["decode"]["recompute_reason"];
  EXPECT_EQ(again.json["token_ids"], whole.json["token_ids"]);
  EXPECT_EQ(Metric("pkv_integrity_failures_total"), 1);
}

}  // namespace
}  // namespace pkv
