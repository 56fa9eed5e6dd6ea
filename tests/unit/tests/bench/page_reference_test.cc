// PageReference against the reference that the attention tests use, which attends to every token of
// a sequence one by one.

#include "tests/bench/page_reference.h"

#include <gmock/gmock.h>

#include <cmath>

#include "tests/support/attention_reference.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

constexpr int kHeadDim = 64, kHeads = 3, kWindow = 37;

struct Inputs {
  SampleKv sample;
  EncodedSample encoded;
  std::vector<double> q;

  explicit Inputs(absl::string_view preset)
      : sample(RandomSampleKv({.num_qo_heads = 2 * kHeads, .num_kv_heads = 2, .head_dim = kHeadDim},
                              3, nullptr)) {
    auto result = EncodeSample(sample, preset, nullptr);
    PKV_CHECK(result.ok(), result.status().ToString());
    encoded = *std::move(result);
    TestRandom random(7);
    for (int i = 0; i < kHeads * kHeadDim; ++i) q.push_back(static_cast<float>(random.Normal()));
  }
  KvTensorView window() const {
    const KvTensorView all = sample.kv.view();
    return all.Tokens(5, kWindow);
  }
};

// Pages first[0], rest[2], rest[0], rest[2], or without the first; kv head 1.
void ExpectAgreement(absl::string_view preset) {
  const Inputs in(preset);
  ASSERT_EQ(in.encoded.first.empty(), in.encoded.params.num_sinks == 0) << preset;
  const int first = in.encoded.first.empty() ? -1 : 0;
  std::vector<BlockPage> pages;
  const auto add = [&pages](const EncodedBlock& block) {
    pages.push_back({&block.header, block.frame.span(), &block.codebook});
  };
  if (first == 0) add(in.encoded.first[0]);
  const std::vector<int> rest = {2, 0, 2};
  for (const int i : rest) add(in.encoded.rest[i]);

  std::vector<float> q(2 * in.q.size());
  std::copy(in.q.begin(), in.q.end(), q.begin() + static_cast<int64_t>(in.q.size()));
  AttentionArgs args;
  args.q = q.data();
  args.num_qo_heads = 2 * kHeads;
  args.sm_scale = 0.125;
  args.pages = pages;
  args.window = in.window();
  const AttentionReference expected = ComputeAttentionReference(args);

  const PageReference reference(in.encoded, 1, in.q, kHeads, args.sm_scale, nullptr);
  const std::vector<double> out =
      reference.Attend(first, rest, {in.window().k_row(1, 0), size_t{kWindow} * kHeadDim},
                       {in.window().v_row(1, 0), size_t{kWindow} * kHeadDim});
  ASSERT_EQ(out.size(), in.q.size());
  for (size_t i = 0; i < out.size(); ++i) {
    const size_t at = in.q.size() + i;
    EXPECT_NEAR(out[i], expected.out[at], expected.out_bound[at]) << preset << " " << i;
  }
}

TEST(PageReferenceTest, AttendsAsTheReferenceOfTheTests) {
  for (const char* preset : {"fp16", "kivi4", "pkv2", "default", "default4"}) {
    ExpectAgreement(preset);
  }
}

TEST(PageReferenceTest, OfNoTokenIsZero) {
  const Inputs in("default");
  const PageReference reference(in.encoded, 0, in.q, kHeads, 0.125, nullptr);
  EXPECT_THAT(reference.Attend(-1, {}, {}, {}), testing::Each(0.0));
}

TEST(RelativeErrorTest, IsTheNormOfTheDifferenceOverThatOfTheExpected) {
  EXPECT_EQ(RelativeError(std::vector{3.0, 4.0}, std::vector{3.0, 4.0}), 0);
  EXPECT_EQ(RelativeError(std::vector{3.0, 9.0}, std::vector{3.0, 4.0}), 1);
  EXPECT_EQ(RelativeError(std::vector{0.5}, std::vector{0.0}), 0.5) << "absolute where all is 0";
  EXPECT_TRUE(std::isnan(RelativeError(std::vector{std::nan("")}, std::vector{1.0})));
}

}  // namespace
}  // namespace pkv
