#include "pkv/block/digest.h"

#include <absl/hash/hash_testing.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using testing::HasSubstr;

// FIPS 180-4 example "abc".
constexpr char kAbcHex[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

std::span<const std::byte> Bytes(absl::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

TEST(DigestTest, Sha256HasTheValuesOfTheStandard) {
  EXPECT_EQ(Sha256({Bytes("abc")}).ToHex(), kAbcHex);
  EXPECT_EQ(Sha256({}).ToHex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

TEST(DigestTest, Sha256OfPartsIsThatOfTheirConcatenation) {
  EXPECT_EQ(Sha256({Bytes("a"), Bytes(""), Bytes("bc")}).ToHex(), kAbcHex);
}

TEST(DigestTest, ComesBackFromHexInEitherCase) {
  EXPECT_THAT(Digest::FromHex(kAbcHex), IsOkAndHolds(Sha256({Bytes("abc")})));
  std::string upper = kAbcHex;
  for (char& c : upper) c = static_cast<char>(std::toupper(c));
  EXPECT_THAT(Digest::FromHex(upper), IsOkAndHolds(Sha256({Bytes("abc")})));
}

TEST(DigestTest, FromHexRefusesEveryOtherLengthAndDigit) {
  const std::string hex = kAbcHex;
  for (const std::string& bad : {std::string(), hex.substr(1), hex + "0"}) {
    EXPECT_THAT(Digest::FromHex(bad),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("hex digits, not 64")));
  }
  for (const char c : {'g', 'G', '/', ':', '@', '`', ' ', '\0'}) {
    std::string bad = hex;
    bad[63] = c;
    EXPECT_THAT(Digest::FromHex(bad),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("at position 63")));
  }
}

TEST(DigestTest, ComesBackFromBytes) {
  const Digest digest = Sha256({Bytes("abc")});
  EXPECT_THAT(Digest::FromBytes(digest.AsBytes()), IsOkAndHolds(digest));
  EXPECT_THAT(Digest::FromBytes(digest.AsBytes().substr(1)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("31 bytes, not 32")));
}

TEST(DigestTest, ShortHexIsTheFirstTwelveDigits) {
  EXPECT_EQ(Sha256({Bytes("abc")}).ToShortHex(), "ba7816bf8f01");
}

TEST(DigestTest, OnlyAllZeroIsZero) {
  EXPECT_TRUE(Digest().IsZero());
  for (size_t i = 0; i < 32; ++i) {
    Digest digest;
    digest.bytes[i] = 1;
    EXPECT_FALSE(digest.IsZero()) << i;
  }
}

TEST(DigestTest, HashAgreesWithEquality) {
  EXPECT_TRUE(absl::VerifyTypeImplementsAbslHashCorrectly(
      {Digest(), Sha256({}), Sha256({Bytes("abc")}), Sha256({Bytes("abd")})}));
}

}  // namespace
}  // namespace pkv
