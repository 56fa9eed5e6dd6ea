#include "worker/engine/fp16_cache_sink.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "pkv/kernels/paged_attention.h"
#include "proto/base/float16.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tensor_gen.h"
#include "worker/engine/dense_attention.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

constexpr KvShape kShape{2, 2, 64};
constexpr int kQoHeads = 4;

// Q, K and V of some tokens, and their view for a layer.
struct Tokens {
  Tokens(uint64_t seed, int num_tokens) : count(num_tokens) {
    TestRandom random(seed);
    const auto fill = [&](std::vector<float>& rows, int heads) {
      rows.resize(size_t(num_tokens) * heads * kShape.head_dim);
      for (float& value : rows) value = static_cast<float>(random.Normal());
    };
    fill(q, kQoHeads);
    fill(k, kShape.num_kv_heads);
    fill(v, kShape.num_kv_heads);
  }

  LayerQkv At(int layer, int64_t first_token) const {
    return {layer, count, first_token, q.data(), k.data(), v.data()};
  }

  int count;
  std::vector<float> q, k, v;
};

absl::Status AttendAllLayers(Fp16CacheSink& sink, const Tokens& tokens, int64_t first_token,
                             std::vector<float>& out) {
  out.resize(tokens.q.size());
  for (int layer = 0; layer < kShape.num_layers; ++layer) {
    const absl::Status status = sink.Attend(tokens.At(layer, first_token), out.data());
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

TEST(Fp16CacheSinkTest, KeepsKAndVRoundedToFp16ByHead) {
  Fp16CacheSink sink(kShape, kQoHeads, nullptr);
  const Tokens first(1, 5), second(2, 3);
  std::vector<float> out;
  ASSERT_THAT(AttendAllLayers(sink, first, 0, out), IsOk());
  ASSERT_THAT(AttendAllLayers(sink, second, 5, out), IsOk());
  EXPECT_EQ(sink.num_tokens(), 8);
  for (int layer = 0; layer < kShape.num_layers; ++layer) {
    const KvTensorView view = sink.layer(layer);
    ASSERT_EQ(view.num_tokens, 8);
    for (int token = 0; token < 8; ++token) {
      const Tokens& source = token < 5 ? first : second;
      const int row = token < 5 ? token : token - 5;
      for (int head = 0; head < kShape.num_kv_heads; ++head) {
        for (int c = 0; c < kShape.head_dim; ++c) {
          const size_t at = (size_t(row) * kShape.num_kv_heads + head) * kShape.head_dim + c;
          ASSERT_EQ(view.k_row(head, token)[c], FloatToFloat16(source.k[at]));
          ASSERT_EQ(view.v_row(head, token)[c], FloatToFloat16(source.v[at]));
        }
      }
    }
  }
}

TEST(Fp16CacheSinkTest, AttendsOverAllCachedTokens) {
  for (const int num_queries : {1, 3}) {
    Fp16CacheSink sink(kShape, kQoHeads, nullptr);
    const Tokens first(1, 140), second(2, num_queries);
    std::vector<float> out;
    ASSERT_THAT(AttendAllLayers(sink, first, 0, out), IsOk());
    ASSERT_THAT(AttendAllLayers(sink, second, 140, out), IsOk());

    std::vector<float> expected(out.size());
    AttentionArgs args;
    args.q = second.q.data();
    args.num_queries = num_queries;
    args.num_qo_heads = kQoHeads;
    args.sm_scale = 1 / std::sqrt(static_cast<float>(kShape.head_dim));
    args.window = sink.layer(1);
    args.out = expected.data();
    ASSERT_THAT(num_queries == 1 ? PagedAttention(args, {}) : DenseAttention(args, nullptr),
                IsOk());
    EXPECT_EQ(out, expected);
  }
}

TEST(Fp16CacheSinkTest, ForgetsTokensAndTakesOthersInTheirPlace) {
  Fp16CacheSink sink(kShape, kQoHeads, nullptr), fresh(kShape, kQoHeads, nullptr);
  const Tokens first(1, 5), dropped(2, 4), kept(3, 2);
  std::vector<float> out, expected;
  ASSERT_THAT(AttendAllLayers(sink, first, 0, out), IsOk());
  ASSERT_THAT(AttendAllLayers(sink, dropped, 5, out), IsOk());
  sink.Truncate(5);
  EXPECT_EQ(sink.num_tokens(), 5);
  ASSERT_THAT(AttendAllLayers(sink, kept, 5, out), IsOk());
  ASSERT_THAT(AttendAllLayers(fresh, first, 0, expected), IsOk());
  ASSERT_THAT(AttendAllLayers(fresh, kept, 5, expected), IsOk());
  EXPECT_EQ(out, expected);
}

TEST(Fp16CacheSinkTest, CountsOnlyTokensThatEveryLayerHolds) {
  Fp16CacheSink sink(kShape, kQoHeads, nullptr);
  const Tokens tokens(1, 3);
  std::vector<float> out(tokens.q.size());
  EXPECT_EQ(sink.num_tokens(), 0);
  ASSERT_THAT(sink.Attend(tokens.At(0, 0), out.data()), IsOk());
  EXPECT_EQ(sink.num_tokens(), 0);
  sink.Truncate(sink.num_tokens());
  EXPECT_THAT(AttendAllLayers(sink, tokens, 0, out), IsOk());
  EXPECT_EQ(sink.num_tokens(), 3);
}

TEST(Fp16CacheSinkTest, RefusesTokensThatDoNotFollow) {
  Fp16CacheSink sink(kShape, kQoHeads, nullptr);
  const Tokens tokens(1, 3);
  std::vector<float> out(tokens.q.size());
  EXPECT_THAT(sink.Attend(tokens.At(0, 1), out.data()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("first_token 1")));
  ASSERT_THAT(sink.Attend(tokens.At(0, 0), out.data()), IsOk());
  EXPECT_THAT(sink.Attend(tokens.At(0, 0), out.data()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("the 3 tokens")));
  for (const int layer : {-1, 2}) {
    EXPECT_THAT(sink.Attend(tokens.At(layer, 0), out.data()),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not in [0, 2)")));
  }
}

TEST(Fp16CacheSinkTest, RefusesWhatFp16DoesNotHold) {
  Fp16CacheSink sink(kShape, kQoHeads, nullptr);
  Tokens tokens(1, 3);
  std::vector<float> out(tokens.q.size());
  for (const float value :
       {65520.0f, -1e30f, std::nanf(""), -std::numeric_limits<float>::infinity()}) {
    Tokens wrong = tokens;
    wrong.k[130] = value;
    EXPECT_THAT(sink.Attend(wrong.At(0, 0), out.data()),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("K of layer 0")));
    wrong = tokens;
    wrong.v.back() = value;
    EXPECT_THAT(sink.Attend(wrong.At(0, 0), out.data()),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("V of layer 0")));
  }
  tokens.k[130] = 65504;
  EXPECT_THAT(sink.Attend(tokens.At(0, 0), out.data()), IsOk());
  EXPECT_EQ(sink.layer(0).num_tokens, 3);
}

}  // namespace
}  // namespace pkv
