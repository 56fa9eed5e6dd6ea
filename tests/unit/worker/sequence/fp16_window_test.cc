#include "worker/sequence/fp16_window.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "proto/base/float16.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

constexpr KvShape kShape{2, 2, 64};

// fp32 rows [token][kv_head][head_dim], each value a different fp16 number.
std::vector<float> Rows(int num_tokens, uint64_t seed) {
  TestRandom random(seed);
  std::vector<float> rows(size_t(num_tokens) * kShape.num_kv_heads * kShape.head_dim);
  for (float& value : rows) {
    value = Float16ToFloat(FloatToFloat16(static_cast<float>(random.Normal())));
  }
  return rows;
}

const float* Row(const std::vector<float>& rows, int token, int kv_head) {
  return rows.data() + (size_t(token) * kShape.num_kv_heads + kv_head) * kShape.head_dim;
}

// Appends tokens to every layer.
void AppendAll(Fp16Window& window, int num_tokens, const std::vector<float>& k,
               const std::vector<float>& v) {
  for (int layer = 0; layer < kShape.num_layers; ++layer) {
    ASSERT_THAT(window.Append(layer, num_tokens, k.data(), v.data()), IsOk());
  }
}

void ExpectHolds(const KvTensorView& view, int begin, int count, const std::vector<float>& k,
                 const std::vector<float>& v) {
  ASSERT_EQ(view.num_tokens, count);
  for (int t = 0; t < count; ++t) {
    for (int h = 0; h < kShape.num_kv_heads; ++h) {
      for (int j = 0; j < kShape.head_dim; ++j) {
        ASSERT_EQ(Float16ToFloat(view.k_row(h, t)[j]), Row(k, begin + t, h)[j]) << t << " " << h;
        ASSERT_EQ(Float16ToFloat(view.v_row(h, t)[j]), Row(v, begin + t, h)[j]) << t << " " << h;
      }
    }
  }
}

TEST(Fp16WindowTest, IsEmptyAtFirst) {
  const Fp16Window window(kShape);
  EXPECT_EQ(window.num_tokens(), 0);
  EXPECT_EQ(window.layer(1).num_tokens, 0);
}

TEST(Fp16WindowTest, KeepsTokensByHeadWhileItGrows) {
  // Past the first capacity of 256 tokens, in steps of all sizes up to 13.
  const int total = 13 * 14 / 2 * 4;
  const std::vector<float> k = Rows(total, 1), v = Rows(total, 2);
  const int row = kShape.num_kv_heads * kShape.head_dim;
  Fp16Window window(kShape);
  for (int at = 0, step = 1; at < total; at += step, step = step % 13 + 1) {
    for (int layer = 0; layer < kShape.num_layers; ++layer) {
      const int count = std::min(step, total - at);
      ASSERT_THAT(window.Append(layer, count, k.data() + at * row, v.data() + at * row), IsOk());
    }
  }
  ExpectHolds(window.layer(0), 0, total, k, v);
  ExpectHolds(window.layer(1), 0, total, k, v);
}

TEST(Fp16WindowTest, CountsATokenOnceTheLastLayerHasIt) {
  const std::vector<float> rows = Rows(1, 3);
  Fp16Window window(kShape);
  ASSERT_THAT(window.Append(0, 1, rows.data(), rows.data()), IsOk());
  EXPECT_EQ(window.num_tokens(), 0);
  EXPECT_EQ(window.num_tokens(0), 1);
  ASSERT_THAT(window.Append(1, 1, rows.data(), rows.data()), IsOk());
  EXPECT_EQ(window.num_tokens(), 1);
}

TEST(Fp16WindowTest, RoundsToNearestEven) {
  const float one_ulp = 0x1.0p-10f;  // of fp16 at 1
  std::vector<float> rows(size_t(kShape.num_kv_heads) * kShape.head_dim, 0.0f);
  rows[0] = 1 + one_ulp / 2;               // a tie, to 1
  rows[1] = 1 + 3 * one_ulp / 2;           // a tie, to 1 + 2 ulp
  rows[2] = 1 + one_ulp / 2 + 0x1.0p-20f;  // above the tie
  Fp16Window window(kShape);
  AppendAll(window, 1, rows, rows);
  const uint16_t* stored = window.layer(0).k_row(0, 0);
  EXPECT_EQ(Float16ToFloat(stored[0]), 1);
  EXPECT_EQ(Float16ToFloat(stored[1]), 1 + 2 * one_ulp);
  EXPECT_EQ(Float16ToFloat(stored[2]), 1 + one_ulp);
}

TEST(Fp16WindowTest, RefusesWhatIsNoFiniteFp16AndNamesThePlace) {
  const float limit = 65520;  // rounds to infinity; the value before it rounds to 65504
  const std::vector<float> good = Rows(3, 4);
  std::vector<float> edge = good;
  const size_t place = (size_t{2} * kShape.num_kv_heads + 1) * kShape.head_dim + 17;
  edge[place] = std::nextafter(limit, 0.0f);
  Fp16Window window(kShape);
  ASSERT_THAT(window.Append(0, 3, edge.data(), good.data()), IsOk());
  for (const float bad : {limit, -limit, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    edge[place] = bad;
    const auto place_text =
        testing::HasSubstr("of layer 0, token 5 of the window, kv head 1, channel 17 is ");
    EXPECT_THAT(window.Append(0, 3, edge.data(), good.data()),
                StatusIs(absl::StatusCode::kOutOfRange,
                         testing::AllOf(testing::StartsWith("K "), place_text)));
    EXPECT_THAT(window.Append(0, 3, good.data(), edge.data()),
                StatusIs(absl::StatusCode::kOutOfRange,
                         testing::AllOf(testing::StartsWith("V "), place_text)));
    EXPECT_EQ(window.num_tokens(0), 3) << "refused tokens are not kept";
  }
}

TEST(Fp16WindowTest, DropsTheOldestTokensOfEveryLayer) {
  const std::vector<float> k = Rows(300, 5), v = Rows(300, 6);
  Fp16Window window(kShape);
  AppendAll(window, 300, k, v);
  window.DropFront(128);
  EXPECT_EQ(window.num_tokens(), 172);
  ExpectHolds(window.layer(0), 128, 172, k, v);
  ExpectHolds(window.layer(1), 128, 172, k, v);
  window.DropFront(172);
  EXPECT_EQ(window.num_tokens(), 0);
  AppendAll(window, 300, k, v);
  ExpectHolds(window.layer(1), 0, 300, k, v);
}

TEST(Fp16WindowTest, TakesAWindowFrameAsItTakesValues) {
  const int n = 37;
  const std::vector<float> k = Rows(n, 7), v = Rows(n, 8), more = Rows(1, 9);
  Fp16Window appended(kShape), framed(kShape), copied(kShape);
  AppendAll(appended, n, k, v);
  // A window object's frame: per head K then V, [token][head_dim] each.
  std::vector<uint16_t> frame;
  for (int h = 0; h < kShape.num_kv_heads; ++h) {
    for (const std::vector<float>* values : {&k, &v}) {
      for (int t = 0; t < n; ++t) {
        for (int j = 0; j < kShape.head_dim; ++j) {
          frame.push_back(FloatToFloat16(Row(*values, t, h)[j]));
        }
      }
    }
  }
  for (int layer = 0; layer < kShape.num_layers; ++layer) {
    framed.AppendFrame(layer, n, std::as_bytes(std::span(frame)));
    copied.AppendKv(layer, appended.layer(layer));
  }
  for (Fp16Window* window : {&appended, &framed, &copied}) {
    ExpectHolds(window->layer(1), 0, n, k, v);
    AppendAll(*window, 1, more, more);
    ExpectHolds(window->layer(1).Tokens(n, 1), 0, 1, more, more);
  }
}

TEST(Fp16WindowDeathTest, DropsNoMoreThanItHolds) {
  Fp16Window window(kShape);
  const std::vector<float> rows = Rows(2, 10);
  AppendAll(window, 2, rows, rows);
  EXPECT_DEATH(window.DropFront(3), "3 of 2");
}

}  // namespace
}  // namespace pkv
