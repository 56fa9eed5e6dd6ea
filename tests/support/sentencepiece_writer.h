#ifndef PKV_TESTS_SUPPORT_SENTENCEPIECE_WRITER_H_
#define PKV_TESTS_SUPPORT_SENTENCEPIECE_WRITER_H_

// Writes small SentencePiece models (field numbers of sentencepiece_model.proto).

#include <bit>
#include <cstdint>
#include <string>
#include <vector>

namespace pkv {

// Pieces <unk>, <s>, </s>, <0x00>..<0xFF>, then what is added, from id 259 on.
struct SentencePieceWriter {
  int model_type = 2;  // BPE
  int num_byte_pieces = 256;
  bool byte_fallback = true;
  bool whitespace_as_suffix = false;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = false;
  int bos_id = 1;
  std::string character_map;

  SentencePieceWriter& Add(const std::string& text, float score, int type) {
    added_ += Message(1, Text(1, text) + Float(2, score) + Number(3, type));
    return *this;
  }

  std::string Bytes() const {
    SentencePieceWriter first;
    first.Add("<unk>", 0, 2).Add("<s>", 0, 3).Add("</s>", 0, 3);
    constexpr char kDigits[] = "0123456789ABCDEF";
    for (int byte = 0; byte < num_byte_pieces; ++byte) {
      first.Add(std::string("<0x") + kDigits[byte / 16] + kDigits[byte % 16] + ">", 0, 6);
    }
    const std::string trainer = Number(3, model_type) + Number(24, whitespace_as_suffix) +
                                Number(35, byte_fallback) + Number(41, bos_id);
    const std::string normalizer = Text(1, "identity") + Text(2, character_map) +
                                   Number(3, add_dummy_prefix) +
                                   Number(4, remove_extra_whitespaces);
    return first.added_ + added_ + Message(2, trainer) + Message(3, normalizer);
  }

 private:
  static std::string Varint(uint64_t value) {
    std::string bytes;
    for (; value >= 128; value >>= 7) bytes.push_back(static_cast<char>(value | 128));
    bytes.push_back(static_cast<char>(value));
    return bytes;
  }
  static std::string Number(int field, int value) {
    return Varint(field << 3) + Varint(static_cast<uint64_t>(static_cast<int64_t>(value)));
  }
  static std::string Text(int field, const std::string& bytes) {
    return Varint(field << 3 | 2) + Varint(bytes.size()) + bytes;
  }
  static std::string Message(int field, const std::string& bytes) { return Text(field, bytes); }
  static std::string Float(int field, float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    return Varint(field << 3 | 5) + std::string(reinterpret_cast<const char*>(&bits), 4);
  }

  std::string added_;
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_SENTENCEPIECE_WRITER_H_
