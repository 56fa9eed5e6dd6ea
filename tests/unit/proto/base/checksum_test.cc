#include "proto/base/checksum.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "absl/strings/string_view.h"

namespace pkv {
namespace {

std::span<const std::byte> Bytes(absl::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// One bit at a time from the polynomial, reflected: 0x82f63b78.
uint32_t Crc32cByDefinition(std::span<const std::byte> bytes) {
  uint32_t crc = 0xffffffffu;
  for (const std::byte byte : bytes) {
    crc ^= std::to_integer<uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0);
  }
  return ~crc;
}

TEST(ChecksumTest, HasTheCheckValueOfCrc32c) { EXPECT_EQ(Crc32c(Bytes("123456789")), 0xe3069283u); }

// RFC 3720, appendix B.4.
TEST(ChecksumTest, AgreesWithTheVectorsOfIscsi) {
  EXPECT_EQ(Crc32c(std::vector<std::byte>(32, std::byte{0})), 0x8a9136aau);
  EXPECT_EQ(Crc32c(std::vector<std::byte>(32, std::byte{0xff})), 0x62a8ab43u);
}

TEST(ChecksumTest, OfNothingIsTheSeed) {
  EXPECT_EQ(Crc32c({}), 0u);
  EXPECT_EQ(Crc32c({}, 0x12345678u), 0x12345678u);
}

TEST(ChecksumTest, AgreesWithTheDefinitionAtEveryLengthAndAlignment) {
  constexpr uint32_t kSeed = 20;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  std::vector<std::byte> bytes(300);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  for (size_t begin = 0; begin < 16; ++begin) {
    for (size_t size = 0; begin + size <= bytes.size(); size += 7) {
      const auto piece = std::span(bytes).subspan(begin, size);
      ASSERT_EQ(Crc32c(piece), Crc32cByDefinition(piece)) << begin << " " << size;
    }
  }
}

TEST(ChecksumTest, MayBeTakenPieceByPiece) {
  const auto whole = Bytes("the quick brown fox jumps over the lazy dog");
  for (size_t cut = 0; cut <= whole.size(); ++cut) {
    ASSERT_EQ(Crc32c(whole.subspan(cut), Crc32c(whole.first(cut))), Crc32c(whole)) << cut;
  }
}

TEST(ChecksumTest, ChangesWithEveryBit) {
  std::vector<std::byte> bytes(128, std::byte{0x5a});
  const uint32_t before = Crc32c(bytes);
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    ASSERT_NE(Crc32c(bytes), before) << bit;
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

}  // namespace
}  // namespace pkv
