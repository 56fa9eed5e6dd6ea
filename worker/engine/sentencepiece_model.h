#ifndef PKV_WORKER_ENGINE_SENTENCEPIECE_MODEL_H_
#define PKV_WORKER_ENGINE_SENTENCEPIECE_MODEL_H_

// Reads a SentencePiece `tokenizer.model`.
//
// Not by libsentencepiece: Debian's carries a Protobuf 3.14 of its own with exported symbols, and a
// process that links it beside gRPC's Protobuf 3.21 aborts or crashes, in either link order.

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace pkv {

// U+2581, which stands for a space inside pieces.
inline constexpr char kPieceSpace[] = "\xe2\x96\x81";

struct SentencePiece {
  // Numbers of sentencepiece_model.proto.
  enum class Type {
    kNormal = 1,
    kUnknown = 2,
    kControl = 3,
    kUserDefined = 4,
    kUnused = 5,
    kByte = 6
  };

  std::string text;
  float score = 0;
  Type type = Type::kNormal;
};

// A BPE model whose normalizer changes nothing but white space: that of the Llama family.
struct SentencePieceModel {
  std::vector<SentencePiece> pieces;  // by token id
  // Ids by text: pieces that merges may form (normal, user-defined, unused), and the others.
  std::unordered_map<std::string, int32_t> mergeable_ids, reserved_ids;
  int32_t byte_ids[256];  // meaningful when byte_fallback
  int32_t unknown_id = 0;
  int32_t bos_id = -1;  // -1: none
  bool byte_fallback = false;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  std::string unknown_surface;

  // `bytes` is the serialised ModelProto.
  //   DataLoss       not a ModelProto, no or two unknown pieces, two pieces with one text, a byte
  //                  piece missing or malformed
  //   Unimplemented  another algorithm than BPE, a normalizer with a character map, white space as
  //                  suffix; names the field
  static absl::StatusOr<SentencePieceModel> Parse(absl::string_view bytes);
};

// The byte that a byte piece such as "<0x41>" stands for; -1 for any other text.
int ByteOfPiece(absl::string_view text);

// Length in bytes of the valid UTF-8 character at the start of `text`; 0 when there is none.
int Utf8CharLength(absl::string_view text);

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_SENTENCEPIECE_MODEL_H_
