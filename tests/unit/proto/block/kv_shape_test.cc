#include "pkv/block/kv_shape.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using testing::HasSubstr;

constexpr KvShape kShape{.num_layers = 32, .num_kv_heads = 8, .head_dim = 128};
constexpr Encoding kTwoBit{
    .bits_k = 2, .bits_v = 2, .k_group_tokens = 128, .v_group_channels = 128};

auto Refuses(const char* message) {
  return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message));
}

TEST(KvShapeTest, AcceptsEveryShapeWithinTheLimits) {
  for (const int head_dim : {64, 128}) {
    EXPECT_THAT(ValidateShape({1, 1, head_dim}), IsOk());
    EXPECT_THAT(ValidateShape({kMaxLayers, kMaxKvHeads, head_dim}), IsOk());
  }
}

TEST(KvShapeTest, RefusesTheFirstValueBeyondEachLimit) {
  EXPECT_THAT(ValidateShape({0, 8, 128}), Refuses("num_layers 0 not in 1..1024"));
  EXPECT_THAT(ValidateShape({kMaxLayers + 1, 8, 128}), Refuses("num_layers 1025"));
  EXPECT_THAT(ValidateShape({-1, 8, 128}), Refuses("num_layers -1"));
  EXPECT_THAT(ValidateShape({32, 0, 128}), Refuses("num_kv_heads 0 not in 1..256"));
  EXPECT_THAT(ValidateShape({32, kMaxKvHeads + 1, 128}), Refuses("num_kv_heads 257"));
}

TEST(KvShapeTest, RefusesEveryOtherHeadDim) {
  for (int head_dim = -1; head_dim <= 300; ++head_dim) {
    const bool is_allowed = head_dim == 64 || head_dim == 128;
    EXPECT_EQ(ValidateShape({32, 8, head_dim}).ok(), is_allowed) << head_dim;
  }
  EXPECT_THAT(ValidateShape({32, 8, 96}), Refuses("head_dim 96 not in {64, 128}"));
}

TEST(EncodingTest, AcceptsExactlyTheDocumentedCombinations) {
  const std::set<int> code_bits = {2, 4}, groups = {32, 64, 128};
  int num_accepted = 0;
  for (const int head_dim : {64, 128}) {
    for (const int bits_k : {0, 1, 2, 3, 4, 8, 16}) {
      for (const int bits_v : {0, 1, 2, 3, 4, 8, 16}) {
        for (const int k_group : {0, 16, 32, 64, 96, 128, 256}) {
          for (const int v_group : {0, 16, 32, 64, 96, 128, 256}) {
            for (const bool has_patterns : {false, true}) {
              const Encoding encoding{bits_k, bits_v, k_group, v_group, has_patterns};
              const bool is_fp16 =
                  bits_k == 16 && bits_v == 16 && k_group == 0 && v_group == 0 && !has_patterns;
              const bool is_coded = code_bits.contains(bits_k) && code_bits.contains(bits_v) &&
                                    groups.contains(k_group) && groups.contains(v_group) &&
                                    v_group <= head_dim;
              const bool accepted = ValidateEncoding({32, 8, head_dim}, encoding).ok();
              ASSERT_EQ(accepted, is_fp16 || is_coded)
                  << head_dim << " " << bits_k << " " << bits_v << " " << k_group << " " << v_group
                  << " " << has_patterns;
              num_accepted += accepted ? 1 : 0;
            }
          }
        }
      }
    }
  }
  // fp16 for two head_dims; 2 x 2 bits, 3 K groups, 3 or 2 V groups, with and without patterns.
  EXPECT_EQ(num_accepted, 2 + 4 * 3 * (3 + 2) * 2);
}

TEST(EncodingTest, AcceptsFineTokensOfOneRowTileWithTwoBitKOnly) {
  for (const int bits_k : {2, 4}) {
    for (const int bits_v : {2, 4}) {
      for (const int k_fine_tokens : {-16, -1, 0, 1, 8, 15, 16, 17, 32, 128}) {
        Encoding encoding = kTwoBit;
        encoding.bits_k = bits_k;
        encoding.bits_v = bits_v;
        encoding.k_fine_tokens = k_fine_tokens;
        const bool is_allowed = k_fine_tokens == 0 || (k_fine_tokens == 16 && bits_k == 2);
        EXPECT_EQ(ValidateEncoding(kShape, encoding).ok(), is_allowed)
            << bits_k << " " << bits_v << " " << k_fine_tokens;
      }
    }
  }
}

TEST(EncodingTest, AcceptsRotatedCodesOfEveryWidth) {
  for (const int bits_k : {2, 4}) {
    for (const int k_fine_tokens : {0, bits_k == 2 ? kFineTokens : 0}) {
      const Encoding encoding{bits_k, 4, 32, 64, true, k_fine_tokens, true};
      EXPECT_THAT(ValidateEncoding(kShape, encoding), IsOk()) << bits_k;
    }
  }
}

TEST(EncodingTest, MessagesNameFieldValueAndLimit) {
  Encoding encoding = kTwoBit;
  encoding.bits_v = 16;
  EXPECT_THAT(ValidateEncoding(kShape, encoding), Refuses("bits_k 2 and bits_v 16"));
  encoding = kTwoBit;
  encoding.k_group_tokens = 256;
  EXPECT_THAT(ValidateEncoding(kShape, encoding),
              Refuses("k_group_tokens 256 not in {32, 64, 128}"));
  EXPECT_THAT(ValidateEncoding({32, 8, 64}, kTwoBit),
              Refuses("v_group_channels 128 not in {32, 64, 128} up to head_dim 64"));
  encoding = {.has_patterns = true};
  EXPECT_THAT(ValidateEncoding(kShape, encoding), Refuses("has_patterns is true, with fp16"));
  encoding = {.k_group_tokens = 32};
  EXPECT_THAT(ValidateEncoding(kShape, encoding), Refuses("k_group_tokens 32 is not 0"));
  encoding = {.v_group_channels = 32};
  EXPECT_THAT(ValidateEncoding(kShape, encoding), Refuses("v_group_channels 32 is not 0"));
  encoding = {.k_fine_tokens = 16};
  EXPECT_THAT(ValidateEncoding(kShape, encoding), Refuses("k_fine_tokens 16 is not 0, with fp16"));
  encoding = {.rotated = true};
  EXPECT_THAT(ValidateEncoding(kShape, encoding), Refuses("rotated is true, with fp16"));
  encoding = kTwoBit;
  encoding.k_fine_tokens = 8;
  EXPECT_THAT(ValidateEncoding(kShape, encoding),
              Refuses("k_fine_tokens 8 is neither 0 nor, with bits_k 2, 16; bits_k is 2"));
  encoding = {4, 2, 128, 128, false, 16, false};
  EXPECT_THAT(ValidateEncoding(kShape, encoding),
              Refuses("k_fine_tokens 16 is neither 0 nor, with bits_k 2, 16; bits_k is 4"));
}

}  // namespace
}  // namespace pkv
