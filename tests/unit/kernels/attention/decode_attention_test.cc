// What Make() and Run() refuse; the numbers are held to the reference in tests/parity.
#include "pkv/kernels/decode_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "kernels/attention/decode_attention_backends.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

DecodeAttentionShape ValidShape() {
  return {.num_qo_heads = 8,
          .num_kv_heads = 2,
          .head_dim = 128,
          .encoding = {.bits_k = 2,
                       .bits_v = 2,
                       .k_group_tokens = 128,
                       .v_group_channels = 128,
                       .has_patterns = true},
          .num_sinks = 16};
}

struct BadShape {
  void (*damage)(DecodeAttentionShape&);
  absl::StatusCode code;
  const char* message;
};

class BadShapeTest : public testing::TestWithParam<BadShape> {};

TEST_P(BadShapeTest, IsRefusedWithItsValueAndLimit) {
  DecodeAttentionShape shape = ValidShape();
  GetParam().damage(shape);
  EXPECT_THAT(DecodeAttention::Make(shape, {.device = Device::kCuda}),
              StatusIs(GetParam().code, HasSubstr(GetParam().message)));
}

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr absl::StatusCode kUnimplemented = absl::StatusCode::kUnimplemented;

INSTANTIATE_TEST_SUITE_P(
    All, BadShapeTest,
    testing::Values(
        BadShape{[](auto& s) { s.head_dim = 96; }, kInvalid, "head_dim 96"},
        BadShape{[](auto& s) { s.num_kv_heads = 0; }, kInvalid, "num_kv_heads 0"},
        BadShape{[](auto& s) { s.num_qo_heads = 7; }, kInvalid, "num_qo_heads 7 is no positive"},
        BadShape{[](auto& s) { s.num_qo_heads = 0; }, kInvalid, "num_qo_heads 0 is no positive"},
        BadShape{[](auto& s) { s.num_sinks = 65; }, kInvalid, "num_sinks 65 not in 0..64"},
        BadShape{[](auto& s) { s.num_sinks = -1; }, kInvalid, "num_sinks -1 not in 0..64"},
        BadShape{[](auto& s) { s.encoding = {}; }, kInvalid, "num_sinks 16 not in 0..0"},
        BadShape{[](auto& s) { s.encoding.bits_k = 3; }, kInvalid, "bits_k 3"},
        BadShape{[](auto& s) { s.num_qo_heads = 18; }, kUnimplemented,
                 "9 query heads a kv head: kTensorCore takes 8"},
        BadShape{[](auto& s) { s.encoding.bits_k = 4; }, kUnimplemented, "bits_k 4, bits_v 2"}));

// Arguments of pools that CheckDecodeArgs() looks at but does not read.
class DecodeArgsTest : public testing::Test {
 protected:
  static constexpr int kBankCapacity = 32, kWindowCapacity = 256;

  DecodeArgsTest() {
    const int64_t rows = 2 * int64_t{shape_.num_kv_heads} * shape_.head_dim;
    std::byte* pool = memory_.data();
    auto* ints = reinterpret_cast<int32_t*>(pool);
    auto* halves = reinterpret_cast<uint16_t*>(pool);
    args_ = {.batch = 1,
             .sm_scale = 0.125f,
             .q = pool,
             .out = pool,
             .pages = pool,
             .page_stride = 2 * 9472,
             .block_table = ints,
             .num_blocks = ints,
             .windows = halves,
             .window_stride = rows * kWindowCapacity,
             .window_capacity = kWindowCapacity,
             .window_ids = ints,
             .num_window_tokens = ints,
             .sinks = halves,
             .sink_stride = rows * shape_.num_sinks,
             .sink_ids = ints,
             .banks = halves,
             .bank_stride = rows * kBankCapacity,
             .bank_capacity = kBankCapacity,
             .bank_ids = ints,
             .num_patterns = ints};
  }
  absl::Status Check() const { return CheckDecodeArgs(shape_, args_); }

  const DecodeAttentionShape shape_ = ValidShape();
  DecodeAttentionArgs args_;

 private:
  alignas(128) std::array<std::byte, 256> memory_{};
};

TEST_F(DecodeArgsTest, AreAcceptedWhenComplete) { EXPECT_THAT(Check(), IsOk()); }

TEST_F(DecodeArgsTest, OfAnEmptyBatchNeedNothing) {
  args_ = {};
  EXPECT_THAT(Check(), IsOk());
}

#define EXPECT_REFUSED(message) \
  EXPECT_THAT(Check(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)))

TEST_F(DecodeArgsTest, WithANegativeBatchAreRefused) {
  args_.batch = -1;
  EXPECT_REFUSED("batch -1 is negative");
}

TEST_F(DecodeArgsTest, WithAnInfiniteScaleAreRefused) {
  args_.sm_scale = INFINITY;
  EXPECT_REFUSED("sm_scale inf is not a finite number above 0");
}

TEST_F(DecodeArgsTest, WithoutAPoolAreRefusedByName) {
  const auto without = [&](auto DecodeAttentionArgs::*pointer, const char* name) {
    const DecodeAttentionArgs whole = args_;
    args_.*pointer = nullptr;
    EXPECT_REFUSED(std::string(name) + " is null");
    args_ = whole;
  };
  without(&DecodeAttentionArgs::q, "q");
  without(&DecodeAttentionArgs::out, "out");
  without(&DecodeAttentionArgs::pages, "pages");
  without(&DecodeAttentionArgs::block_table, "block_table");
  without(&DecodeAttentionArgs::num_blocks, "num_blocks");
  without(&DecodeAttentionArgs::windows, "windows");
  without(&DecodeAttentionArgs::window_ids, "window_ids");
  without(&DecodeAttentionArgs::num_window_tokens, "num_window_tokens");
  without(&DecodeAttentionArgs::sinks, "sinks");
  without(&DecodeAttentionArgs::sink_ids, "sink_ids");
  without(&DecodeAttentionArgs::banks, "banks");
  without(&DecodeAttentionArgs::bank_ids, "bank_ids");
  without(&DecodeAttentionArgs::num_patterns, "num_patterns");
}

TEST_F(DecodeArgsTest, WithHalfATokenAreRefused) {
  args_.token_k = args_.banks;
  EXPECT_REFUSED("token_k without token_v");
}

TEST_F(DecodeArgsTest, WithAShortOrUnevenStrideAreRefused) {
  const auto with = [&](int64_t DecodeAttentionArgs::*stride, int64_t change, const char* message) {
    const DecodeAttentionArgs whole = args_;
    args_.*stride += change;
    EXPECT_REFUSED(message);
    args_ = whole;
  };
  with(&DecodeAttentionArgs::page_stride, -128, "page_stride 18816 is below 18944");
  with(&DecodeAttentionArgs::page_stride, 64, "page_stride 19008 is below 18944 or no multiple");
  with(&DecodeAttentionArgs::window_stride, -8, "window_stride");
  with(&DecodeAttentionArgs::window_stride, 4, "window_stride");
  with(&DecodeAttentionArgs::sink_stride, -8, "sink_stride");
  with(&DecodeAttentionArgs::bank_stride, -8, "bank_stride");
}

TEST_F(DecodeArgsTest, WithAMisalignedPoolAreRefused) {
  args_.pages += 64;
  EXPECT_REFUSED("pages is 64 bytes past a multiple of 128");
}

TEST_F(DecodeArgsTest, WithALargerBankThanIdsCanNameAreRefused) {
  args_.bank_capacity = 256;
  EXPECT_REFUSED("bank_capacity 256 not in 0..255");
}

}  // namespace
}  // namespace pkv
