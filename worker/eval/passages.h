#ifndef PKV_WORKER_EVAL_PASSAGES_H_
#define PKV_WORKER_EVAL_PASSAGES_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/serve/model_host.h"

namespace pkv {

// A text that passages were cut from.
struct PassageText {
  std::string path;
  uint64_t bytes = 0;
  std::string sha256;  // hexadecimal
  int64_t num_tokens = 0;
};

struct Passage {
  int text_index = 0;
  int64_t first_token = 0;      // of the text, the one after BOS
  std::vector<int32_t> tokens;  // BOS and what follows
};

struct PassageSet {
  std::vector<PassageText> texts;
  std::vector<Passage> passages;
};

struct PassageOptions {
  int num_tokens = 0;  // of a passage, without BOS
  int num_passages = 12;
  // Within each text a passage begins in the middle of its share of the text, or, with a seed, at a
  // place in it that the seed decides.
  uint64_t seed = 0;
};

// Cuts passages of BOS and num_tokens tokens from the texts, taking turns among them, at equal
// strides within each. Texts beyond the number of passages are not read.
//   InvalidArgument  a text is too short (names it), no text, no passage, no token
//   NotFound         a text cannot be read
absl::StatusOr<PassageSet> CutPassages(ModelHost& host, std::span<const std::string> text_files,
                                       const PassageOptions& options);

}  // namespace pkv

#endif  // PKV_WORKER_EVAL_PASSAGES_H_
