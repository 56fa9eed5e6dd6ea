#include "worker/engine/dense_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "pkv/kernels/block_codec.h"
#include "pkv/kernels/codebook.h"
#include "proto/base/float16.h"
#include "proto/base/thread_pool.h"
#include "tests/support/block_fixture.h"
#include "tests/support/error_bound.h"
#include "tests/support/rotation_reference.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

struct Case {
  int num_kv_heads, group, head_dim;
  int num_pages;
  int window_tokens, num_queries;
  const char* variant;  // of the pages
};

void PrintTo(const Case& c, std::ostream* os) {
  *os << c.num_kv_heads << "x" << c.group << " heads of " << c.head_dim << ", " << c.num_pages
      << " pages " << c.variant << ", window " << c.window_tokens << ", queries " << c.num_queries;
}

// One softmax attention problem and its answer in fp64, from the very numbers that attention reads.
class DenseAttentionTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const Case& c = GetParam();
    const KvShape shape{1, c.num_kv_heads, c.head_dim};
    const CodecParams params = PresetFor(c.variant, shape);
    for (int i = 0; i < c.num_pages; ++i) {
      const TestTensor kv = RandomTensor(100 + i, c.num_kv_heads, kBlockTokens, c.head_dim);
      Codebook bank;
      if (params.encoding.has_patterns) bank = *MinePatterns(kv.view(), params, {});
      blocks_.push_back(EncodeBlock(shape, params, kv.view(), bank, Phase::kPrefill, i));
    }
    for (const EncodedBlock& block : blocks_) {
      pages_.push_back({&block.header, block.frame.span(), &block.codebook});
    }
    q_.resize(size_t(c.num_queries) * num_qo_heads() * c.head_dim);
    TestRandom random(5);
    for (float& value : q_) value = static_cast<float>(2 * random.Normal());
    out_.resize(q_.size());
    lse_.resize(size_t(c.num_queries) * num_qo_heads());
  }

  int num_qo_heads() const { return GetParam().num_kv_heads * GetParam().group; }

  AttentionArgs Args() {
    AttentionArgs args;
    args.q = q_.data();
    args.num_queries = GetParam().num_queries;
    args.num_qo_heads = num_qo_heads();
    args.sm_scale = 1 / std::sqrt(static_cast<float>(GetParam().head_dim));
    args.pages = pages_;
    args.window = window_.view();
    args.out = out_.data();
    args.lse = lse_.data();
    return args;
  }

  // K and V rows of one head: dequantized pages, rotated back, then the window.
  std::pair<std::vector<double>, std::vector<double>> Rows(int kv_head) const {
    const int head_dim = GetParam().head_dim;
    std::vector<float> tile(size_t(kBlockTokens) * head_dim);
    std::vector<double> k, v;
    const auto append = [&](const BlockPage& page, std::vector<double>& to) {
      const size_t begin = to.size();
      to.insert(to.end(), tile.begin(), tile.end());
      for (size_t at = begin; page.header->encoding().rotated && at < to.size(); at += head_dim) {
        RotateReference(std::span(to).subspan(at, head_dim));
      }
    };
    for (const BlockPage& page : pages_) {
      DequantizeKTile(*page.header, page.frame, *page.codebook, kv_head, tile.data());
      append(page, k);
      DequantizeVTile(*page.header, page.frame, *page.codebook, kv_head, tile.data());
      append(page, v);
    }
    const KvTensorView window = window_.view();
    for (int i = 0; i < window.num_tokens * head_dim; ++i) {
      k.push_back(Float16ToFloat(window.k_row(kv_head, 0)[i]));
      v.push_back(Float16ToFloat(window.v_row(kv_head, 0)[i]));
    }
    return {k, v};
  }

  void CheckAgainstFp64() const;
  void CheckQuery(const std::vector<double>& k, const std::vector<double>& v, int query,
                  int head) const;

  const TestTensor window_ =
      RandomTensor(7, GetParam().num_kv_heads, GetParam().window_tokens, GetParam().head_dim);
  std::vector<EncodedBlock> blocks_;
  std::vector<BlockPage> pages_;
  std::vector<float> q_, out_, lse_;
};

// The errors of one output, to first order. A score errs by `score_error`: the sum of head_dim
// products, times the scale. A weight errs relatively by twice that (its own score and, in another
// tile, the largest one's), by rounding score - largest, by 4 units of e^x, and in each of the
// tiles by 6 for the factor that rescales what stood before. The output is a ratio of two sums of
// such weights, with the rounding of sums of all tokens. K and V of rotated pages are rotated back
// in binary32: a score moves by |q| RotationBound(|k|), the output by a mean of RotationBound(|v|).
void DenseAttentionTest::CheckQuery(const std::vector<double>& k, const std::vector<double>& v,
                                    int query, int head) const {
  const int head_dim = GetParam().head_dim;
  const bool rotated = PresetFor(GetParam().variant, {1, 1, head_dim}).encoding.rotated;
  const int total = static_cast<int>(k.size()) / head_dim;
  const int visible = total - GetParam().num_queries + query + 1;
  const double scale = 1 / std::sqrt(static_cast<float>(head_dim));
  const float* q = q_.data() + (size_t(query) * num_qo_heads() + head) * head_dim;
  const std::vector<double> q_row(q, q + head_dim);
  std::vector<double> scores(visible);
  double score_error = 0, largest_magnitude = 0, rotation_error = 0;
  for (int t = 0; t < visible; ++t) {
    double magnitude = 0;
    for (int c = 0; c < head_dim; ++c) {
      const double product = double{q[c]} * k[size_t(t) * head_dim + c];
      scores[t] += product * scale;
      magnitude += std::abs(product) * scale;
    }
    const double k_norm = Norm(std::span(k).subspan(size_t(t) * head_dim, head_dim));
    const double k_rotation = rotated ? RotationBound(head_dim, Norm(q_row) * k_norm * scale) : 0;
    score_error = std::max(score_error, SumBound(head_dim + 1, magnitude) + k_rotation);
    largest_magnitude = std::max(largest_magnitude, std::abs(scores[t]));
  }
  const double largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  std::vector<double> out(head_dim), magnitude(head_dim);
  for (int t = 0; t < visible; ++t) {
    const double weight = std::exp(scores[t] - largest);
    sum += weight;
    const double v_norm = Norm(std::span(v).subspan(size_t(t) * head_dim, head_dim));
    if (rotated) rotation_error = std::max(rotation_error, RotationBound(head_dim, v_norm));
    for (int c = 0; c < head_dim; ++c) {
      out[c] += weight * v[size_t(t) * head_dim + c];
      magnitude[c] += weight * std::abs(v[size_t(t) * head_dim + c]);
    }
  }
  const int num_tiles = visible / kBlockTokens + 2;
  const double weight_error = std::expm1(2 * score_error + 4 * largest_magnitude * kFloatUnit) +
                              (4 + 6 * num_tiles) * kFloatUnit;
  const double relative = 2 * (weight_error + SumBound(visible, 1)) + 2 * kFloatUnit;
  for (int c = 0; c < head_dim; ++c) {
    ASSERT_NEAR(out_[(size_t(query) * num_qo_heads() + head) * head_dim + c], out[c] / sum,
                relative * magnitude[c] / sum + rotation_error)
        << "query " << query << " head " << head << " channel " << c;
  }
  const double lse = largest + std::log(sum);
  ASSERT_NEAR(lse_[size_t(query) * num_qo_heads() + head], lse,
              score_error + relative + 4 * kFloatUnit * (1 + std::abs(largest) + std::abs(lse)));
}

void DenseAttentionTest::CheckAgainstFp64() const {
  for (int head = 0; head < num_qo_heads(); ++head) {
    const auto [k, v] = Rows(head / GetParam().group);
    // Every seventh query, the first and the last: all tiles and edges, in a seventh of the time.
    for (int query = 0; query < GetParam().num_queries; ++query) {
      if (query % 7 != 0 && query + 1 != GetParam().num_queries) continue;
      CheckQuery(k, v, query, head);
    }
  }
}

TEST_P(DenseAttentionTest, AgreesWithFp64) {
  ASSERT_THAT(DenseAttention(Args(), nullptr), IsOk());
  CheckAgainstFp64();
}

TEST_P(DenseAttentionTest, GivesEqualBitsWithAnyPool) {
  ASSERT_THAT(DenseAttention(Args(), nullptr), IsOk());
  const std::vector<float> out = out_, lse = lse_;
  ThreadPool pool(3);
  ASSERT_THAT(DenseAttention(Args(), &pool), IsOk());
  EXPECT_EQ(out_, out);
  EXPECT_EQ(lse_, lse);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, DenseAttentionTest,
    ::testing::Values(Case{1, 1, 64, 0, 1, 1, "fp16"}, Case{2, 4, 128, 0, 300, 300, "fp16"},
                      Case{1, 2, 64, 0, 129, 1, "fp16"}, Case{2, 1, 64, 0, 400, 130, "fp16"},
                      Case{1, 3, 128, 2, 10, 10, "fp16"}, Case{2, 2, 128, 1, 140, 135, "kivi2"},
                      Case{1, 4, 64, 2, 131, 1, "pkv4"}, Case{2, 2, 128, 2, 5, 5, "default"},
                      Case{1, 2, 64, 3, 9, 1, "default"}, Case{1, 2, 128, 1, 30, 20, "default4"}));

// A query must not see a later token: those are made so large that one of them would take all
// weight.
TEST(DenseAttentionMaskTest, SeesNoLaterToken) {
  constexpr int kTokens = 200, kDim = 64;
  TestTensor kv = RandomTensor(9, 1, kTokens, kDim);
  std::vector<float> q(kTokens * kDim, 1.0f), out(q.size());
  for (int t = 0; t < kTokens; ++t) {
    for (int c = 0; c < kDim; ++c) {
      kv.k[t * kDim + c] = FloatToFloat16(static_cast<float>(t));  // each token beats all before
      kv.v[t * kDim + c] = FloatToFloat16(static_cast<float>(t));
    }
  }
  AttentionArgs args;
  args.q = q.data();
  args.num_queries = kTokens;
  args.num_qo_heads = 1;
  args.sm_scale = 1;
  args.window = kv.view();
  args.out = out.data();
  ASSERT_THAT(DenseAttention(args, nullptr), IsOk());
  // The token before has weight e^-64: below half a unit of any output.
  for (int t = 0; t < kTokens; ++t) EXPECT_FLOAT_EQ(out[t * kDim], static_cast<float>(t));
}

TEST(DenseAttentionArgsTest, RefusesShapesThatDisagree) {
  const TestTensor kv = RandomTensor(1, 2, 4, 64);
  std::vector<float> q(4 * 4 * 64), out(q.size());
  AttentionArgs valid;
  valid.q = q.data();
  valid.num_queries = 4;
  valid.num_qo_heads = 4;
  valid.sm_scale = 1;
  valid.window = kv.view();
  valid.out = out.data();
  ASSERT_THAT(DenseAttention(valid, nullptr), IsOk());

  AttentionArgs args = valid;
  args.num_qo_heads = 3;
  EXPECT_THAT(DenseAttention(args, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("num_qo_heads 3")));
  args = valid;
  args.num_queries = 5;
  EXPECT_THAT(DenseAttention(args, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("num_queries 5")));
  args = valid;
  args.window.head_dim = 96;
  EXPECT_THAT(DenseAttention(args, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("head_dim 96")));
  args = valid;
  args.window.num_kv_heads = 0;
  EXPECT_THAT(DenseAttention(args, nullptr), StatusIs(absl::StatusCode::kInvalidArgument));
  ObjectHeader header;
  header.num_kv_heads = 3;
  header.head_dim = 64;
  const std::vector<BlockPage> pages = {{&header, {}, nullptr}};
  args = valid;
  args.pages = pages;
  EXPECT_THAT(DenseAttention(args, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("page of 3 kv heads")));
}

TEST(DenseAttentionArgsTest, DoesNothingWithoutQueries) {
  const TestTensor kv = RandomTensor(1, 1, 4, 64);
  AttentionArgs args;
  args.num_queries = 0;
  args.num_qo_heads = 1;
  args.window = kv.view();
  EXPECT_THAT(DenseAttention(args, nullptr), IsOk());
}

}  // namespace
}  // namespace pkv
