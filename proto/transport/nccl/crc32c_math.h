#ifndef PKV_PROTO_TRANSPORT_NCCL_CRC32C_MATH_H_
#define PKV_PROTO_TRANSPORT_NCCL_CRC32C_MATH_H_

// CRC-32C as arithmetic of polynomials over GF(2) modulo the Castagnoli polynomial P, for digests
// that many threads take of one span.
//
// Reflected, as the bytes lie in memory: bit 31 of a word is x^0, bit 0 is x^31, and a word read
// little endian comes before (stands for higher powers than) the word after it. Of a message M of n
// bytes the checksum is
//
//   ~( M x^32 + 0xffffffff x^(8 n) ) mod P
//
// so a message may be cut anywhere: the parts' M x^32 mod P, each times x^(bits after it), add up.

#include <cstdint>

#include "proto/base/host_device.h"

namespace pkv {

inline constexpr uint32_t kCrc32cPolynomial = 0x82f63b78u;
inline constexpr uint32_t kCrc32cOne = 0x80000000u;  // x^0

PKV_HOST_DEVICE constexpr uint32_t Crc32cTimesX(uint32_t a) {
  return (a >> 1) ^ (kCrc32cPolynomial & (0u - (a & 1u)));
}

// a b mod P.
PKV_HOST_DEVICE constexpr uint32_t Crc32cMultiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (int power = 0; power < 32; ++power) {
    product ^= a & (0u - ((b >> (31 - power)) & 1u));
    a = Crc32cTimesX(a);
  }
  return product;
}

// x^n mod P.
constexpr uint32_t Crc32cPowerOfX(uint64_t n) {
  uint32_t power = kCrc32cOne;
  uint32_t square = kCrc32cOne >> 1;
  for (; n != 0; n >>= 1) {
    if ((n & 1) != 0) power = Crc32cMultiply(power, square);
    square = Crc32cMultiply(square, square);
  }
  return power;
}

// Products of one fixed factor with the 16 values of each nibble of a word: a product is eight
// look-ups.
struct Crc32cNibbles {
  uint32_t product[8][16] = {};

  static constexpr Crc32cNibbles Of(uint32_t factor) {
    Crc32cNibbles nibbles;
    for (uint32_t place = 0; place < 8; ++place) {
      for (uint32_t value = 0; value < 16; ++value) {
        nibbles.product[place][value] = Crc32cMultiply(factor, value << (4 * place));
      }
    }
    return nibbles;
  }

  constexpr uint32_t Times(uint32_t a) const {
    uint32_t sum = 0;
    for (int place = 0; place < 8; ++place) sum ^= product[place][(a >> (4 * place)) & 15];
    return sum;
  }
};

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_NCCL_CRC32C_MATH_H_
