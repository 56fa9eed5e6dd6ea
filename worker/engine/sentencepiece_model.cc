#include "worker/engine/sentencepiece_model.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// A Protobuf message, field by field (the wire format; all that reading needs of it).
class WireReader {
 public:
  explicit WireReader(absl::string_view bytes) : bytes_(bytes) {}

  struct Field {
    uint64_t number = 0;
    uint64_t value = 0;       // of a varint or a fixed number
    absl::string_view bytes;  // of a length-delimited field
  };

  bool done() const { return bytes_.empty(); }

  // DataLoss: the bytes end inside a field, or its wire type is none of the four in use.
  absl::StatusOr<Field> Next() {
    PKV_ASSIGN_OR_RETURN(const uint64_t tag, Varint());
    Field field;
    field.number = tag >> 3;
    switch (tag & 7) {
      case 0: {
        PKV_ASSIGN_OR_RETURN(field.value, Varint());
        return field;
      }
      case 1: {
        PKV_ASSIGN_OR_RETURN(const absl::string_view fixed, Take(8));
        std::memcpy(&field.value, fixed.data(), 8);
        return field;
      }
      case 2: {
        PKV_ASSIGN_OR_RETURN(const uint64_t size, Varint());
        PKV_ASSIGN_OR_RETURN(field.bytes, Take(size));
        return field;
      }
      case 5: {
        PKV_ASSIGN_OR_RETURN(const absl::string_view fixed, Take(4));
        std::memcpy(&field.value, fixed.data(), 4);
        return field;
      }
      default:
        return absl::DataLossError(absl::StrCat("wire type ", tag & 7, " of field ", tag >> 3));
    }
  }

 private:
  absl::StatusOr<uint64_t> Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      PKV_ASSIGN_OR_RETURN(const absl::string_view byte, Take(1));
      value |= uint64_t{static_cast<uint8_t>(byte[0]) & 0x7fu} << shift;
      if ((byte[0] & 0x80) == 0) return value;
    }
    return absl::DataLossError("a number of more than 64 bits");
  }

  absl::StatusOr<absl::string_view> Take(uint64_t size) {
    if (size > bytes_.size()) {
      return absl::DataLossError(
          absl::StrCat("ends ", size - bytes_.size(), " bytes before a field does"));
    }
    const absl::string_view taken = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return taken;
  }

  absl::string_view bytes_;
};

absl::Status ParsePiece(absl::string_view bytes, SentencePiece& piece) {
  for (WireReader reader(bytes); !reader.done();) {
    PKV_ASSIGN_OR_RETURN(const WireReader::Field field, reader.Next());
    if (field.number == 1) piece.text = std::string(field.bytes);
    if (field.number == 2) piece.score = std::bit_cast<float>(static_cast<uint32_t>(field.value));
    if (field.number == 3) {
      if (field.value < 1 || field.value > 6) {
        return absl::DataLossError(absl::StrCat("piece type ", field.value, " not in [1, 6]"));
      }
      piece.type = static_cast<SentencePiece::Type>(field.value);
    }
  }
  return absl::OkStatus();
}

absl::Status ParseTrainerSpec(absl::string_view bytes, SentencePieceModel& model) {
  constexpr uint64_t kBpe = 2;
  uint64_t algorithm = 1;  // unigram, the format's default
  for (WireReader reader(bytes); !reader.done();) {
    PKV_ASSIGN_OR_RETURN(const WireReader::Field field, reader.Next());
    if (field.number == 3) algorithm = field.value;
    if (field.number == 24 && field.value != 0) {
      return absl::UnimplementedError("treat_whitespace_as_suffix true is not false");
    }
    if (field.number == 35) model.byte_fallback = field.value != 0;
    if (field.number == 41) model.bos_id = static_cast<int32_t>(field.value);
    if (field.number == 44) model.unknown_surface = std::string(field.bytes);
  }
  if (algorithm == kBpe) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat("model_type ", algorithm, " is not 2 (BPE)"));
}

absl::Status ParseNormalizerSpec(absl::string_view bytes, SentencePieceModel& model) {
  for (WireReader reader(bytes); !reader.done();) {
    PKV_ASSIGN_OR_RETURN(const WireReader::Field field, reader.Next());
    if (field.number == 2 && !field.bytes.empty()) {
      return absl::UnimplementedError(absl::StrCat("precompiled_charsmap of ", field.bytes.size(),
                                                   " bytes is not empty (identity)"));
    }
    if (field.number == 3) model.add_dummy_prefix = field.value != 0;
    if (field.number == 4) model.remove_extra_whitespaces = field.value != 0;
    if (field.number == 5) model.escape_whitespaces = field.value != 0;
  }
  return absl::OkStatus();
}

bool IsMergeable(SentencePiece::Type type) {
  return type == SentencePiece::Type::kNormal || type == SentencePiece::Type::kUserDefined ||
         type == SentencePiece::Type::kUnused;
}

// Fills in what is found by looking at all pieces.
absl::Status IndexPieces(SentencePieceModel& model) {
  std::optional<int32_t> unknown_id;
  std::fill(std::begin(model.byte_ids), std::end(model.byte_ids), -1);
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const SentencePiece& piece = model.pieces[i];
    const int32_t id = static_cast<int32_t>(i);
    auto& ids = IsMergeable(piece.type) ? model.mergeable_ids : model.reserved_ids;
    if (piece.text.empty() || !ids.emplace(piece.text, id).second) {
      return absl::DataLossError(
          absl::StrCat("piece ", id, " '", piece.text, "' is empty or there twice"));
    }
    if (piece.type == SentencePiece::Type::kByte) {
      const int byte = ByteOfPiece(piece.text);
      if (byte < 0) {
        return absl::DataLossError(
            absl::StrCat("byte piece ", id, " '", piece.text, "' is not of the form <0x41>"));
      }
      model.byte_ids[byte] = id;
    }
    if (piece.type == SentencePiece::Type::kUnknown) {
      if (unknown_id.has_value()) {
        return absl::DataLossError(
            absl::StrCat("pieces ", *unknown_id, " and ", id, " are both the unknown piece"));
      }
      unknown_id = id;
    }
  }
  if (!unknown_id.has_value()) return absl::DataLossError("no unknown piece");
  model.unknown_id = *unknown_id;
  const int32_t* missing = std::find(std::begin(model.byte_ids), std::end(model.byte_ids), -1);
  if (model.byte_fallback && missing != std::end(model.byte_ids)) {
    return absl::DataLossError(absl::StrCat("byte_fallback without a piece for byte ",
                                            missing - std::begin(model.byte_ids)));
  }
  if (model.bos_id >= static_cast<int32_t>(model.pieces.size())) {
    return absl::DataLossError(
        absl::StrCat("bos_id ", model.bos_id, " of ", model.pieces.size(), " pieces"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SentencePieceModel> SentencePieceModel::Parse(absl::string_view bytes) {
  SentencePieceModel model;
  model.unknown_surface = " \xe2\x81\x87 ";  // these two are the format's defaults
  model.bos_id = 1;
  // A message that comes in parts is their concatenation.
  std::string trainer_spec, normalizer_spec;
  for (WireReader reader(bytes); !reader.done();) {
    PKV_ASSIGN_OR_RETURN(const WireReader::Field field, reader.Next());
    if (field.number == 1) {
      PKV_RETURN_IF_ERROR(ParsePiece(field.bytes, model.pieces.emplace_back()));
    } else if (field.number == 2) {
      absl::StrAppend(&trainer_spec, field.bytes);
    } else if (field.number == 3) {
      absl::StrAppend(&normalizer_spec, field.bytes);
    }
  }
  if (model.pieces.empty()) return absl::DataLossError("no pieces");
  PKV_RETURN_IF_ERROR(ParseTrainerSpec(trainer_spec, model));
  PKV_RETURN_IF_ERROR(ParseNormalizerSpec(normalizer_spec, model));
  PKV_RETURN_IF_ERROR(IndexPieces(model));
  return model;
}

int ByteOfPiece(absl::string_view text) {
  const auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
  };
  if (text.size() != 6 || !absl::StartsWith(text, "<0x") || text[5] != '>') return -1;
  const int upper = digit(text[3]), lower = digit(text[4]);
  return upper < 0 || lower < 0 ? -1 : 16 * upper + lower;
}

int Utf8CharLength(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  if (text.empty()) return 0;
  const int length = byte(0) < 0x80   ? 1
                     : byte(0) < 0xc2 ? 0
                     : byte(0) < 0xe0 ? 2
                     : byte(0) < 0xf0 ? 3
                     : byte(0) < 0xf5 ? 4
                                      : 0;
  if (text.size() < static_cast<size_t>(length)) return 0;
  for (int i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  // Overlong forms, surrogates, and what lies above U+10FFFF.
  if (byte(0) == 0xe0 && byte(1) < 0xa0) return 0;
  if (byte(0) == 0xed && byte(1) >= 0xa0) return 0;
  if (byte(0) == 0xf0 && byte(1) < 0x90) return 0;
  if (byte(0) == 0xf4 && byte(1) >= 0x90) return 0;
  return length;
}

}  // namespace pkv
