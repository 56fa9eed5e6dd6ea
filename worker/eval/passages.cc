#include "worker/eval/passages.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "pkv/block/digest.h"
#include "proto/base/status_macros.h"
#include "proto/base/thread_pool.h"

namespace pkv {
namespace {

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  if (!file || !(text << file.rdbuf())) {
    return absl::NotFoundError(absl::StrCat("cannot read text file ", path, ", or it is empty"));
  }
  return text.str();
}

// In [0, 1): splitmix64 of seed and index.
double Uniform(uint64_t seed, int index) {
  uint64_t z = seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(index) * 0xd1b54a32d192ed03u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1.0p-53;
}

// A text and its tokens.
struct ReadText {
  PassageText text;
  std::vector<int32_t> tokens;
};

absl::StatusOr<ReadText> Read(const ModelHost& host, const std::string& path) {
  ReadText read;
  PKV_ASSIGN_OR_RETURN(const std::string content, ReadFile(path));
  PKV_ASSIGN_OR_RETURN(read.tokens, host.tokenizer().Encode(content, /*add_bos=*/false));
  const Digest digest = Sha256({std::as_bytes(std::span(content.data(), content.size()))});
  read.text = {path, content.size(), digest.ToHex(), static_cast<int64_t>(read.tokens.size())};
  return read;
}

}  // namespace

absl::StatusOr<PassageSet> CutPassages(ModelHost& host, std::span<const std::string> text_files,
                                       const PassageOptions& options) {
  if (options.num_tokens < 1 || options.num_passages < 1 || text_files.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.num_passages, " passages of ", options.num_tokens, " tokens from ",
                     text_files.size(), " texts: each must be positive"));
  }
  const int num_texts = static_cast<int>(text_files.size());
  const int num_read = std::min(num_texts, options.num_passages);
  std::vector<absl::StatusOr<ReadText>> texts(num_read);
  ParallelFor(host.pool(), num_read, [&](int i) { texts[i] = Read(host, text_files[i]); });
  PassageSet set;
  set.passages.resize(options.num_passages);
  for (int text = 0; text < num_read; ++text) {
    PKV_RETURN_IF_ERROR(texts[text].status());
    const std::vector<int32_t>& tokens = texts[text]->tokens;
    set.texts.push_back(texts[text]->text);
    const int count = (options.num_passages - text + num_texts - 1) / num_texts;
    const int64_t room = static_cast<int64_t>(tokens.size()) - options.num_tokens;
    if (room < 0) {
      return absl::InvalidArgumentError(absl::StrCat(text_files[text], " has ", tokens.size(),
                                                     " tokens; a passage needs ",
                                                     options.num_tokens));
    }
    for (int i = 0; i < count; ++i) {
      const int index = text + i * num_texts;
      int64_t begin = room * (2 * i + 1) / (2 * count);
      if (options.seed != 0) {
        const double share = (i + Uniform(options.seed, index)) / count;
        begin = static_cast<int64_t>(static_cast<double>(room) * share);
      }
      Passage& passage = set.passages[index];
      passage.text_index = text;
      passage.first_token = begin;
      passage.tokens.push_back(host.config().bos_token_id);
      passage.tokens.insert(passage.tokens.end(), tokens.begin() + begin,
                            tokens.begin() + begin + options.num_tokens);
    }
  }
  return set;
}

}  // namespace pkv
