#include "tests/bench/serve/token_source.h"

#include <algorithm>

#include "proto/base/log.h"
#include "tests/bench/serve/random_stream.h"

namespace pkv {
namespace {

// A byte 10xxxxxx is not the first of its character.
bool Continues(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) == 0x80; }

}  // namespace

void TokenSource::Fill(uint64_t seed, std::span<int32_t> ids) const {
  RandomStream random(seed);
  if (text_.empty()) {
    for (int32_t& id : ids) id = static_cast<int32_t>(random.Below(vocab_));
    return;
  }
  size_t at = random.Below(text_.size());
  for (int32_t& id : ids) {
    id = text_[at];
    if (++at == text_.size()) at = 0;
  }
}

void TokenSource::Begin(std::span<int32_t> prompt) const {
  if (bos_.has_value() && !prompt.empty()) prompt[0] = *bos_;
}

std::vector<std::string> SplitText(absl::string_view text, size_t piece_bytes) {
  PKV_CHECK(piece_bytes >= 4, "a piece of ", piece_bytes, " bytes may not hold a character");
  std::vector<std::string> pieces;
  while (!text.empty()) {
    size_t end = std::min(piece_bytes, text.size());
    if (end < text.size()) {
      // Where the character begins that a cut here would divide; it has four bytes at most.
      size_t begin = end;
      while (begin > end - 3 && Continues(text[begin])) --begin;
      if (!Continues(text[begin])) end = begin;
    }
    pieces.emplace_back(text.substr(0, end));
    text.remove_prefix(end);
  }
  return pieces;
}

}  // namespace pkv
