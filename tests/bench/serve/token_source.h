#ifndef PKV_TESTS_BENCH_SERVE_TOKEN_SOURCE_H_
#define PKV_TESTS_BENCH_SERVE_TOKEN_SOURCE_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace pkv {

// Where the token ids of prompts come from: a text's, or random ones.
// Thread-safe: constant.
class TokenSource {
 public:
  // Random ids below `vocab`. REQUIRES: vocab >= 1
  static TokenSource Random(int vocab) { return TokenSource(vocab, {}, std::nullopt); }
  // Passages of a text that begin at random places and go on at the text's start when it ends;
  // every prompt begins with `bos`. REQUIRES: `text` is not empty
  static TokenSource Text(std::vector<int32_t> text, int32_t bos) {
    return TokenSource(0, std::move(text), bos);
  }

  // The same seed gives the same ids, a shorter span the first of them.
  void Fill(uint64_t seed, std::span<int32_t> ids) const;
  // Puts the first token in its place, where there is one.
  void Begin(std::span<int32_t> prompt) const;

 private:
  TokenSource(int vocab, std::vector<int32_t> text, std::optional<int32_t> bos)
      : vocab_(vocab), text_(std::move(text)), bos_(bos) {}

  int vocab_;
  std::vector<int32_t> text_;
  std::optional<int32_t> bos_;
};

// Cuts a text into pieces of at most `piece_bytes` (at least 4), none of which begins inside a
// UTF-8 character; what is no UTF-8 is cut anywhere. An empty text has no pieces.
std::vector<std::string> SplitText(absl::string_view text, size_t piece_bytes);

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_SERVE_TOKEN_SOURCE_H_
