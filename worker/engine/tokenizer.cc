#include "worker/engine/tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <queue>
#include <set>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "proto/base/status_macros.h"
#include "worker/engine/sentencepiece_model.h"

namespace pkv {
namespace {

// U+FFFD, which stands for a byte that belongs to no valid character.
constexpr char kReplacement[] = "\xef\xbf\xbd";
constexpr uintmax_t kMaxModelBytes = 256 << 20;

// Byte-pair merges of one text: of all neighbours whose union is a piece, the pair with the highest
// score is merged first, the leftmost of equals (Sennrich et al., 2016, as SentencePiece does it).
class PairMerger {
 public:
  explicit PairMerger(const SentencePieceModel& model) : model_(model) {}

  // A symbol that no merge touches when `is_fixed`. Symbols are added from left to right and point
  // into one contiguous text.
  void AddSymbol(absl::string_view text, bool is_fixed) {
    const int index = static_cast<int>(symbols_.size());
    symbols_.push_back({text, index - 1, -1, is_fixed});
    if (index == 0) return;
    symbols_[index - 1].next = index;
    Consider(index - 1, index);
  }

  // Merges all and appends the ids.
  void Merge(std::vector<int32_t>& ids) {
    while (!pairs_.empty()) {
      const Pair pair = pairs_.top();
      pairs_.pop();
      Symbol& left = symbols_[pair.left];
      Symbol& right = symbols_[pair.right];
      // One of the two was merged with another meanwhile.
      if (left.text.empty() || right.text.empty() ||
          left.text.size() + right.text.size() != pair.bytes) {
        continue;
      }
      left.text = {left.text.data(), pair.bytes};
      left.next = right.next;
      if (right.next >= 0) symbols_[right.next].previous = pair.left;
      right.text = {};
      Consider(left.previous, pair.left);
      Consider(pair.left, left.next);
    }
    for (int i = symbols_.empty() ? -1 : 0; i >= 0; i = symbols_[i].next) {
      AppendIds(symbols_[i].text, ids);
    }
  }

 private:
  struct Symbol {
    absl::string_view text;  // empty once merged into its left neighbour
    int previous, next;      // -1: none
    bool is_fixed;
  };
  struct Pair {
    int left, right;
    float score;
    size_t bytes;
    bool operator<(const Pair& other) const {
      return score < other.score || (score == other.score && left > other.left);
    }
  };

  void Consider(int left, int right) {
    if (left < 0 || right < 0 || symbols_[left].is_fixed || symbols_[right].is_fixed) return;
    const absl::string_view first = symbols_[left].text;
    const absl::string_view both(first.data(), first.size() + symbols_[right].text.size());
    const auto it = model_.mergeable_ids.find(std::string(both));
    if (it == model_.mergeable_ids.end()) return;
    const SentencePiece& piece = model_.pieces[it->second];
    pairs_.push({left, right, piece.score, both.size()});
    if (piece.type == SentencePiece::Type::kUnused) unused_splits_[piece.text] = first.size();
  }

  void AppendIds(absl::string_view text, std::vector<int32_t>& ids) {
    const std::string key(text);
    const auto reserved = model_.reserved_ids.find(key);
    const auto mergeable = model_.mergeable_ids.find(key);
    const int32_t id = reserved != model_.reserved_ids.end()     ? reserved->second
                       : mergeable != model_.mergeable_ids.end() ? mergeable->second
                                                                 : model_.unknown_id;
    // An unused piece serves merges on their way to longer ones but is never an output: it falls
    // back into what it was merged from.
    if (model_.pieces[id].type == SentencePiece::Type::kUnused) {
      const auto split = unused_splits_.find(key);
      if (split != unused_splits_.end()) {
        AppendIds(text.substr(0, split->second), ids);
        AppendIds(text.substr(split->second), ids);
        return;
      }
    }
    const bool is_unknown = id == model_.unknown_id;
    if (is_unknown && model_.byte_fallback) {
      for (const char c : text) ids.push_back(model_.byte_ids[static_cast<uint8_t>(c)]);
    } else if (!is_unknown || !last_was_unknown_) {  // a run of unknown characters is one token
      ids.push_back(id);
    }
    last_was_unknown_ = is_unknown;
  }

  const SentencePieceModel& model_;
  std::vector<Symbol> symbols_;
  std::priority_queue<Pair> pairs_;
  std::unordered_map<std::string, size_t> unused_splits_;  // bytes of the left part
  bool last_was_unknown_ = false;
};

class SentencePieceTokenizer final : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(SentencePieceModel model) : model_(std::move(model)) {
    for (const SentencePiece& piece : model_.pieces) {
      if (piece.type != SentencePiece::Type::kUserDefined) continue;
      user_defined_.insert(piece.text);
      longest_user_defined_ = std::max(longest_user_defined_, piece.text.size());
    }
  }

  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text, bool add_bos) const override;
  absl::StatusOr<std::string> Decode(std::span<const int32_t> token_ids) const override;

 private:
  // Bytes of the longest user-defined piece that `text` starts with; 0 without one.
  size_t UserDefinedLength(absl::string_view text) const {
    for (size_t size = std::min(longest_user_defined_, text.size()); size > 0; --size) {
      if (user_defined_.contains(std::string(text.substr(0, size)))) return size;
    }
    return 0;
  }
  // Invalid bytes replaced, spaces escaped, trimmed and prefixed as the model says.
  std::string Normalise(absl::string_view text) const;
  // What a piece reads as; `at_start` strips the prefix that Encode() added.
  std::string Surface(const SentencePiece& piece, bool at_start, bool& stripped) const;

  const SentencePieceModel model_;
  std::set<std::string> user_defined_;
  size_t longest_user_defined_ = 0;
};

std::string SentencePieceTokenizer::Normalise(absl::string_view text) const {
  const bool trims = model_.remove_extra_whitespaces;
  const absl::string_view space = model_.escape_whitespaces ? kPieceSpace : " ";
  while (trims && absl::StartsWith(text, " ")) text.remove_prefix(1);
  std::string normalised;
  if (text.empty()) return normalised;
  if (model_.add_dummy_prefix) absl::StrAppend(&normalised, space);
  bool after_space = trims;
  while (!text.empty()) {
    size_t size = UserDefinedLength(text);
    if (size == 0) size = Utf8CharLength(text);
    absl::string_view character = text.substr(0, std::max<size_t>(size, 1));
    text.remove_prefix(character.size());
    if (size == 0) character = kReplacement;
    while (after_space && absl::StartsWith(character, " ")) character.remove_prefix(1);
    if (character.empty()) continue;
    for (const char c : character) {
      absl::StrAppend(&normalised, c == ' ' ? space : absl::string_view(&c, 1));
    }
    after_space = trims && absl::EndsWith(character, " ");
  }
  while (trims && absl::EndsWith(normalised, space)) {
    normalised.erase(normalised.size() - space.size());
  }
  return normalised;
}

absl::StatusOr<std::vector<int32_t>> SentencePieceTokenizer::Encode(absl::string_view text,
                                                                    bool add_bos) const {
  std::vector<int32_t> ids;
  if (add_bos) {
    if (model_.bos_id < 0) return absl::InvalidArgumentError("the tokenizer has no BOS id");
    ids.push_back(model_.bos_id);
  }
  const std::string normalised = Normalise(text);
  PairMerger merger(model_);
  for (absl::string_view rest = normalised; !rest.empty();) {
    const size_t user_defined = UserDefinedLength(rest);
    // Normalise() left valid characters only.
    const size_t size = user_defined > 0 ? user_defined : Utf8CharLength(rest);
    merger.AddSymbol(rest.substr(0, size), user_defined > 0);
    rest.remove_prefix(size);
  }
  merger.Merge(ids);
  return ids;
}

std::string SentencePieceTokenizer::Surface(const SentencePiece& piece, bool at_start,
                                            bool& stripped) const {
  stripped = false;
  if (piece.type == SentencePiece::Type::kControl) return "";
  if (piece.type == SentencePiece::Type::kUnknown) return model_.unknown_surface;
  absl::string_view text = piece.text;
  if (at_start && (model_.add_dummy_prefix || model_.remove_extra_whitespaces) &&
      absl::StartsWith(text, kPieceSpace)) {
    text.remove_prefix(sizeof(kPieceSpace) - 1);
    // With white space trimmed, all that leads is dropped; else the one that was added.
    stripped = !model_.remove_extra_whitespaces;
  }
  return absl::StrReplaceAll(text, {{kPieceSpace, " "}});
}

absl::StatusOr<std::string> SentencePieceTokenizer::Decode(
    std::span<const int32_t> token_ids) const {
  std::string text, bytes;
  const auto flush_bytes = [&] {
    for (absl::string_view rest = bytes; !rest.empty();) {
      const int length = Utf8CharLength(rest);
      absl::StrAppend(&text, length > 0 ? rest.substr(0, length) : kReplacement);
      rest.remove_prefix(std::max(length, 1));
    }
    bytes.clear();
  };
  bool at_start = true, stripped = false;
  for (const int32_t id : token_ids) {
    if (id < 0 || id >= static_cast<int32_t>(model_.pieces.size())) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", id, " is not in [0, ", model_.pieces.size(), ")"));
    }
    const SentencePiece& piece = model_.pieces[id];
    if (piece.type == SentencePiece::Type::kByte) {
      bytes.push_back(static_cast<char>(ByteOfPiece(piece.text)));
      continue;
    }
    flush_bytes();
    if (stripped || !text.empty()) at_start = false;
    text += Surface(piece, at_start, stripped);
  }
  flush_bytes();
  return text;
}

absl::StatusOr<std::string> ReadModelFile(const std::string& path) {
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) return absl::NotFoundError(absl::StrCat(path, ": ", error.message()));
  if (size > kMaxModelBytes) {
    return absl::DataLossError(absl::StrCat(path, ": ", size, " bytes exceed ", kMaxModelBytes));
  }
  std::ifstream file(path, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  return bytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/tokenizer.model");
  std::error_code error;
  if (!std::filesystem::exists(path, error) &&
      std::filesystem::exists(absl::StrCat(directory, "/tokenizer.json"), error)) {
    return absl::UnimplementedError(
        absl::StrCat(directory, " has tokenizer.json, not the tokenizer.model of SentencePiece"));
  }
  PKV_ASSIGN_OR_RETURN(const std::string bytes, ReadModelFile(path));
  absl::StatusOr<SentencePieceModel> model = SentencePieceModel::Parse(bytes);
  if (!model.ok()) {
    return absl::Status(model.status().code(), absl::StrCat(path, ": ", model.status().message()));
  }
  return std::make_unique<SentencePieceTokenizer>(*std::move(model));
}

absl::StatusOr<std::string> StreamDecoder::Add(int32_t token_id) {
  token_ids_.push_back(token_id);
  absl::StatusOr<std::string> text = tokenizer_->Decode(token_ids_);
  if (!text.ok()) {
    token_ids_.pop_back();
    return text;
  }
  // The bytes of an unfinished character, at most three, read as U+FFFD each until the last one
  // arrives.
  absl::string_view finished = *text;
  for (int i = 0; i < 3 && absl::EndsWith(finished, kReplacement); ++i) {
    finished.remove_suffix(sizeof(kReplacement) - 1);
  }
  if (finished.size() < returned_bytes_) return std::string();
  std::string added(finished.substr(returned_bytes_));
  returned_bytes_ = finished.size();
  if (finished.size() < text->size()) return added;

  // Some context must stay, because a piece at the very start loses its leading space. Any tokens
  // serve that read as something.
  const std::span<const int32_t> newer =
      std::span<const int32_t>(token_ids_).subspan(context_tokens_);
  PKV_ASSIGN_OR_RETURN(const std::string alone, tokenizer_->Decode(newer));
  if (!alone.empty()) {
    token_ids_.erase(token_ids_.begin(), token_ids_.begin() + context_tokens_);
    returned_bytes_ = alone.size();
  }
  context_tokens_ = token_ids_.size();
  return added;
}

}  // namespace pkv
