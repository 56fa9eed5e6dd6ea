#include "kernels/codec/byte_order.h"

#include "proto/block/fragment_order.h"

namespace pkv {

ByteOrder::ByteOrder(int columns, int bits_in)
    : num_columns(columns),
      bits(bits_in),
      num_classes(columns * bits_in == 128 * 4 ? 2 : 1),
      unit_bytes(columns * bits_in == 64 * 2 ? 32 : 64) {
  constexpr int kUnits = 8;
  const int unit_words = unit_bytes / 4;
  for (int c = 0; c < columns; ++c) {
    const CodePosition at = LocateCode(0, c, columns, bits);
    const int in_class = at.word_index / (kUnits * unit_words);
    const int word = at.word_index % unit_words / 2;
    const int plane = at.shift % 8 / bits, byte = at.shift / 8;
    const int place = ((in_class * num_planes() + plane) * words_per_row() + word) * 4 + byte;
    column[place] = static_cast<uint8_t>(c);
    stored_column[place] = static_cast<uint8_t>(ColumnPosition(c, columns));
    stored_row[place] = static_cast<uint8_t>(RowPosition(c, columns));
  }
}

const ByteOrder& ByteOrder::Of(int num_columns, int bits) {
  static const ByteOrder orders[2][2] = {{{64, 2}, {64, 4}}, {{128, 2}, {128, 4}}};
  return orders[num_columns / 128][bits / 4];
}

void ByteOrder::Permute(const float* values, float* out) const {
  for (int i = 0; i < num_columns; ++i) out[i] = values[column[i]];
}

}  // namespace pkv
