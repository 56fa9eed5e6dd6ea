#include "kernels/attention/code_matrix.h"

#include "kernels/device/cpu_clones.h"
#include "proto/block/fragment_order.h"

namespace pkv {
namespace {

constexpr int kTileRows = 16;

typedef uint32_t WordLanes __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef int32_t IntLanes __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint32_t UnalignedWordLanes
    __attribute__((vector_size(kLanes * sizeof(uint32_t)), aligned(alignof(uint32_t)), may_alias));

// What a product reads and writes, kCount vectors at a time.
struct Product {
  const uint32_t* words;
  int first_tile, last_tile;
  int num_classes, rows_per_run;
  const float* factors;
  int size;  // of one vector of factors
  float* out;
  int out_stride;
};

// Folds the lanes of one run into its rows: lane bit 0 is the row's upper half of the tile; of four
// rows, lane bit 3 is the lower bit of g (fragment_order.h).
inline __attribute__((always_inline)) void StoreRows(const FloatLanes& sums, int rows_per_run,
                                                     int run, float* out) {
  const float* s = reinterpret_cast<const float*>(&sums);
  if (rows_per_run == 2) {
    float t[8], u[4];
    for (int i = 0; i < 8; ++i) t[i] = s[i] + s[i + 8];
    for (int i = 0; i < 4; ++i) u[i] = t[i] + t[i + 4];
    out[run] = u[0] + u[2];
    out[run + 8] = u[1] + u[3];
    return;
  }
  for (int half = 0; half < 2; ++half) {
    const float* t = s + 8 * half;
    float u[4];
    for (int i = 0; i < 4; ++i) u[i] = t[i] + t[i + 4];
    out[2 * run + half] = u[0] + u[2];
    out[2 * run + half + 8] = u[1] + u[3];
  }
}

template <int kBits, int kCount>
inline __attribute__((always_inline)) void MultiplyBody(const Product& p) {
  constexpr int kPlanes = 32 / kBits;
  const int runs = kTileRows / p.rows_per_run;
  const uint32_t* words = p.words + p.first_tile * p.num_classes * runs * kLanes;
  for (int tile = p.first_tile; tile < p.last_tile; ++tile) {
    for (int run = 0; run < runs; ++run) {
      FloatLanes sums[kCount] = {};
      for (int c = 0; c < p.num_classes; ++c) {
        const WordLanes w =
            *reinterpret_cast<const UnalignedWordLanes*>(words + (c * runs + run) * kLanes);
        const float* factors = p.factors + c * kPlanes * kLanes;
#pragma GCC unroll 16
        for (int plane = 0; plane < kPlanes; ++plane) {
          const WordLanes code = (w >> (kBits * plane)) & ((1u << kBits) - 1);
          const FloatLanes value =
              __builtin_convertvector(reinterpret_cast<const IntLanes&>(code), FloatLanes);
          for (int i = 0; i < kCount; ++i) {
            sums[i] = sums[i] + value * *reinterpret_cast<const UnalignedFloatLanes*>(
                                            factors + i * p.size + plane * kLanes);
          }
        }
      }
      for (int i = 0; i < kCount; ++i) {
        StoreRows(sums[i], p.rows_per_run, run, p.out + i * p.out_stride + tile * kTileRows);
      }
    }
    words += p.num_classes * runs * kLanes;
  }
}

PKV_CPU_CLONES void Multiply2Bit4(const Product& p) { MultiplyBody<2, 4>(p); }
PKV_CPU_CLONES void Multiply2Bit1(const Product& p) { MultiplyBody<2, 1>(p); }
PKV_CPU_CLONES void Multiply4Bit4(const Product& p) { MultiplyBody<4, 4>(p); }
PKV_CPU_CLONES void Multiply4Bit1(const Product& p) { MultiplyBody<4, 1>(p); }

}  // namespace

PlaneOrder::PlaneOrder(int num_columns, int bits_in) : bits(bits_in) {
  const int words_per_tile = kTileRows * num_columns * bits / 32;
  // A lane's words come in chunks of four or, of 64 columns at 2 bits, two.
  rows_per_run = words_per_tile < 4 * 32 ? 4 : 2;
  const int words_per_class = kTileRows / rows_per_run * kLanes;
  num_classes = words_per_tile / words_per_class;
  size = num_classes * (32 / bits) * kLanes;
  for (int row = 0; row < kTileRows; ++row) {
    for (int c = 0; c < num_columns; ++c) {
      const CodePosition at = LocateCode(row, c, num_columns, bits);
      const int place = (at.word_index / words_per_class * (32 / bits) + at.shift / bits) * kLanes +
                        at.word_index % kLanes;
      column[place] = static_cast<uint8_t>(c);
    }
  }
}

const PlaneOrder& PlaneOrder::Of(int num_columns, int bits) {
  static const PlaneOrder orders[2][2] = {{{64, 2}, {64, 4}}, {{128, 2}, {128, 4}}};
  return orders[num_columns / 128][bits / 4];
}

void PlaneOrder::Permute(const float* values, float* out) const {
  for (int i = 0; i < size; ++i) out[i] = values[column[i]];
}

void MultiplyCodes(const PlaneOrder& order, const uint32_t* words, int first_tile, int last_tile,
                   const float* factors, int count, float* out, int out_stride) {
  Product p = {words,   first_tile, last_tile, order.num_classes, order.rows_per_run,
               factors, order.size, out,       out_stride};
  for (int i = 0; i < count;) {
    const int step = count - i >= 4 ? 4 : 1;
    if (order.bits == 2) {
      step == 4 ? Multiply2Bit4(p) : Multiply2Bit1(p);
    } else {
      step == 4 ? Multiply4Bit4(p) : Multiply4Bit1(p);
    }
    p.factors += static_cast<int64_t>(step) * order.size;
    p.out += static_cast<int64_t>(step) * out_stride;
    i += step;
  }
}

}  // namespace pkv
