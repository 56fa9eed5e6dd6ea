#include "worker/sequence/kv_buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "pkv/kernels/rotation.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

TEST(KvBufferTest, HoldsHeadsInARow) {
  KvBuffer buffer(2, 3, 64);
  const MutableKvTensorView view = buffer.view();
  EXPECT_EQ(view.num_kv_heads, 2);
  EXPECT_EQ(view.num_tokens, 3);
  EXPECT_EQ(view.head_dim, 64);
  EXPECT_EQ(view.head_stride, 3 * 64);
  EXPECT_TRUE(std::all_of(view.k, view.k + 2 * 3 * 64, [](uint16_t x) { return x == 0; }));
  view.k[view.head_stride + 5] = 7;
  view.v[5] = 8;
  EXPECT_EQ(buffer.view().k[3 * 64 + 5], 7);
  EXPECT_EQ(buffer.view().v[5], 8);
}

TEST(KvBufferTest, RotatesEveryRowOfAStridedView) {
  // Tokens 1 .. 3 of 5: heads of the view are not in a row.
  const TestTensor tensor = RandomTensor(1, 2, 5, 64);
  const KvTensorView part = tensor.view().Tokens(1, 3);
  KvBuffer rotated = KvBuffer::Rotated(part);
  const MutableKvTensorView view = rotated.view();
  ASSERT_EQ(view.num_tokens, 3);
  for (int head = 0; head < 2; ++head) {
    for (int token = 0; token < 3; ++token) {
      const int64_t at = head * view.head_stride + token * 64;
      uint16_t want[64];
      RotateFloat16Rows(part.k_row(head, token), 1, 64, want);
      EXPECT_TRUE(std::equal(want, want + 64, view.k + at));
      RotateFloat16Rows(part.v_row(head, token), 1, 64, want);
      EXPECT_TRUE(std::equal(want, want + 64, view.v + at));
    }
  }
}

TEST(KvBufferTest, IsEmptyWithoutTokens) {
  KvBuffer buffer;
  EXPECT_EQ(buffer.view().num_tokens, 0);
  EXPECT_EQ(KvBuffer::Rotated(KvBuffer(1, 0, 64).view()).view().num_tokens, 0);
}

}  // namespace
}  // namespace pkv
