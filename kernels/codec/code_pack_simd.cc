#include "kernels/device/highway_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/codec/code_pack_simd.cc"
#include "hwy/foreach_target.h"  // includes this file once per instruction set

#include "hwy/highway.h"
#include "kernels/codec/code_pack_simd.h"

HWY_BEFORE_NAMESPACE();
namespace pkv {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int kTileRows = 16;
constexpr int kUnits = 8;  // of a tile and class: rows g and g + 8 each

#if HWY_TARGET == HWY_SCALAR

void TransposeOn(const float* rows, int num_rows, int head_dim, float* columns) {
  for (int i = 0; i < num_rows; ++i) {
    for (int j = 0; j < head_dim; ++j) columns[j * kBlockTokens + i] = rows[i * head_dim + j];
  }
}

// `at` is the place in byte order of the first column of a word.
void PackWord(const ByteOrder& order, const uint8_t* codes, int at, uint32_t* words) {
  const int plane_columns = order.words_per_row() * 4;
  for (int row = 0; row < kTileRows; ++row) {
    uint32_t word = 0;
    for (int plane = 0; plane < order.num_planes(); ++plane) {
      for (int byte = 0; byte < 4; ++byte) {
        const int column = order.column[at + plane * plane_columns + byte];
        word |= uint32_t{codes[column * kBlockTokens + row]} << (8 * byte + order.bits * plane);
      }
    }
    words[row % 8 * order.unit_bytes / 4 + row / 8] = word;
  }
}

#else

void TransposeOn(const float* rows, int num_rows, int head_dim, float* columns) {
  const hn::FixedTag<float, 4> d;
  const hn::FixedTag<double, 2> pairs;
  for (int i = 0; i < num_rows; i += 4) {
    for (int j = 0; j < head_dim; j += 4) {
      const float* from = rows + i * head_dim + j;
      const auto r0 = hn::LoadU(d, from), r1 = hn::LoadU(d, from + head_dim);
      const auto r2 = hn::LoadU(d, from + 2 * head_dim), r3 = hn::LoadU(d, from + 3 * head_dim);
      const auto low01 = hn::BitCast(pairs, hn::InterleaveLower(d, r0, r1));
      const auto low23 = hn::BitCast(pairs, hn::InterleaveLower(d, r2, r3));
      const auto high01 = hn::BitCast(pairs, hn::InterleaveUpper(d, r0, r1));
      const auto high23 = hn::BitCast(pairs, hn::InterleaveUpper(d, r2, r3));
      float* to = columns + j * kBlockTokens + i;
      const auto store = [&](int column, auto v) HWY_ATTR {
        hn::StoreU(hn::BitCast(d, v), d, to + column * kBlockTokens);
      };
      store(0, hn::InterleaveLower(pairs, low01, low23));
      store(1, hn::InterleaveUpper(pairs, low01, low23));
      store(2, hn::InterleaveLower(pairs, high01, high23));
      store(3, hn::InterleaveUpper(pairs, high01, high23));
    }
  }
}

// One byte of a word for the 16 rows of a tile, in the order of units: row 0, 8, 1, 9, ...
template <int kBits>
HWY_INLINE auto PackByte(const ByteOrder& order, const uint8_t* codes, int at) {
  const hn::FixedTag<uint8_t, kTileRows> d8;
  const hn::FixedTag<uint16_t, kTileRows / 2> d16;  // codes are small: no bit leaves its byte
  const int plane_columns = order.words_per_row() * 4;
  const auto load = [&](int plane) HWY_ATTR {
    const int column = order.column[at + plane * plane_columns];
    return hn::BitCast(d16, hn::LoadU(d8, codes + column * kBlockTokens));
  };
  auto packed = hn::Or(load(0), hn::ShiftLeft<kBits>(load(1)));
  if constexpr (kBits == 2) {
    packed = hn::Or(packed, hn::Or(hn::ShiftLeft<4>(load(2)), hn::ShiftLeft<6>(load(3))));
  }
  const auto rows = hn::BitCast(d8, packed);
  return hn::InterleaveLower(d8, rows, hn::ConcatUpperUpper(d8, rows, rows));
}

template <int kBits>
HWY_INLINE void PackWordBits(const ByteOrder& order, const uint8_t* codes, int at,
                             uint32_t* words) {
  const hn::FixedTag<uint8_t, 16> d8;
  const hn::FixedTag<uint16_t, 8> d16;
  const hn::FixedTag<uint64_t, 2> d64;
  const auto b0 = PackByte<kBits>(order, codes, at), b1 = PackByte<kBits>(order, codes, at + 1);
  const auto b2 = PackByte<kBits>(order, codes, at + 2), b3 = PackByte<kBits>(order, codes, at + 3);
  alignas(16) uint64_t by_unit[kUnits];  // the words of rows g and g + 8
  const auto store = [&](int unit, auto low, auto high) HWY_ATTR {
    const auto l = hn::BitCast(d16, low), h = hn::BitCast(d16, high);
    hn::Store(hn::BitCast(d64, hn::InterleaveLower(d16, l, h)), d64, by_unit + unit);
    hn::Store(hn::BitCast(d64, hn::InterleaveUpper(d16, l, h)), d64, by_unit + unit + 2);
  };
  store(0, hn::InterleaveLower(d8, b0, b1), hn::InterleaveLower(d8, b2, b3));
  store(4, hn::InterleaveUpper(d8, b0, b1), hn::InterleaveUpper(d8, b2, b3));
  for (int unit = 0; unit < kUnits; ++unit) {
    hwy::CopyBytes<sizeof(uint64_t)>(by_unit + unit, words + unit * order.unit_bytes / 4);
  }
}

void PackWord(const ByteOrder& order, const uint8_t* codes, int at, uint32_t* words) {
  order.bits == 2 ? PackWordBits<2>(order, codes, at, words)
                  : PackWordBits<4>(order, codes, at, words);
}

#endif

void PackOn(const ByteOrder& order, const uint8_t* codes, int num_tiles, uint32_t* words) {
  const int unit_words = order.unit_bytes / 4;
  const int class_columns = order.num_columns / order.num_classes;
  for (int tile = 0; tile < num_tiles; ++tile) {
    for (int c = 0; c < order.num_classes; ++c) {
      for (int word = 0; word < order.words_per_row(); ++word) {
        PackWord(order, codes + tile * kTileRows, c * class_columns + 4 * word,
                 words + (tile * order.num_classes + c) * kUnits * unit_words + 2 * word);
      }
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pkv {
namespace {

HWY_EXPORT(TransposeOn);
HWY_EXPORT(PackOn);

}  // namespace

void TransposeRows(const float* rows, int num_rows, int head_dim, float* columns) {
  HWY_DYNAMIC_DISPATCH(TransposeOn)(rows, num_rows, head_dim, columns);
}

void PackCodes(const ByteOrder& order, const uint8_t* codes, int num_tiles, uint32_t* words) {
  HWY_DYNAMIC_DISPATCH(PackOn)(order, codes, num_tiles, words);
}

}  // namespace pkv
#endif  // HWY_ONCE
