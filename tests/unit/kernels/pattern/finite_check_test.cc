#include "kernels/pattern/finite_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/base/thread_pool.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

TEST(FiniteCheckTest, AcceptsTheLargestFiniteValue) {
  TestTensor tensor(2, 5, 64);
  tensor.k[3] = 0x7bff;
  tensor.v[7] = 0xfbff;
  EXPECT_THAT(CheckFinite(tensor.view(), nullptr), IsOk());
}

TEST(FiniteCheckTest, NoTokenIsFinite) {
  EXPECT_THAT(CheckFinite(TestTensor(2, 0, 64).view(), nullptr), IsOk());
}

TEST(FiniteCheckTest, NamesTheFirstPlaceWithAnyPool) {
  TestTensor tensor(3, 9, 64);
  tensor.v[5] = 0x7c00;
  tensor.k[(1 * 9 + 4) * 64 + 17] = 0x7e01;
  tensor.k[(2 * 9 + 0) * 64 + 1] = 0xfc00;
  ThreadPool pool(3);
  for (ThreadPool* p : {static_cast<ThreadPool*>(nullptr), &pool}) {
    EXPECT_THAT(CheckFinite(tensor.view(), p),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         HasSubstr("K is nan at kv head 1, token 4, channel 17")));
  }
}

TEST(FiniteCheckTest, SkipsWhatLiesBetweenHeads) {
  TestTensor tensor(2, 9, 64);
  tensor.k[8 * 64] = 0x7c00;  // token 8 of head 0
  KvTensorView view = tensor.view();
  view.num_tokens = 8;  // the stride stays that of nine
  EXPECT_THAT(CheckFinite(view, nullptr), IsOk());
}

}  // namespace
}  // namespace pkv
