#ifndef PKV_WORKER_ENGINE_TOKENIZER_H_
#define PKV_WORKER_ENGINE_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace pkv {

// Text to token ids and back, by SentencePiece.
// Thread-safe.
class Tokenizer {
 public:
  // Reads `directory`/tokenizer.model. NotFound, DataLoss; Unimplemented when only tokenizer.json
  // is there.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& directory);
  virtual ~Tokenizer() = default;

  // BOS first when `add_bos`.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                                      bool add_bos) const = 0;
  virtual absl::StatusOr<std::string> Decode(std::span<const int32_t> token_ids) const = 0;
};

// Turns a stream of token ids into a stream of text that adds up to Tokenizer::Decode of them all;
// holds back bytes of an unfinished UTF-8 character. Thread-compatible.
class StreamDecoder {
 public:
  // `tokenizer` must outlive it.
  explicit StreamDecoder(const Tokenizer* tokenizer) : tokenizer_(tokenizer) {}
  // What this token adds.
  absl::StatusOr<std::string> Add(int32_t token_id);

 private:
  const Tokenizer* tokenizer_;
  // Context, whose text was returned, then what came since the last finished character.
  std::vector<int32_t> token_ids_;
  size_t context_tokens_ = 0;
  size_t returned_bytes_ = 0;  // of the text of token_ids_
};

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_TOKENIZER_H_
