#include "tests/bench/sample_kv.h"

#include <gmock/gmock.h>

#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"
#include "worker/engine/safetensors_writer.h"

namespace pkv {
namespace {

using testing::HasSubstr;

constexpr int kLayers = 2, kKvHeads = 2, kQoHeads = 4, kTokens = 300, kQueries = 3, kDumpedDim = 64;

// A value that says where in a dump it stands; K, V and q differ by `tensor`. Small integers: exact
// in fp16.
float Marker(int tensor, int layer, int head, int token, int channel) {
  return static_cast<float>(tensor * 600 + layer * 300 + head * 60 + token % 5 * 10 + channel / 16);
}

class DumpedSampleTest : public testing::Test {
 protected:
  // [rows][columns][kDumpedDim]; the head is the row of K and V, the column of q.
  static std::vector<uint16_t> Tensor(int tensor, int layer, int rows, int columns) {
    std::vector<uint16_t> values;
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < columns; ++c) {
        for (int j = 0; j < kDumpedDim; ++j) {
          const int head = tensor < 2 ? r : c, token = tensor < 2 ? c : r;
          values.push_back(FloatToFloat16(Marker(tensor, layer, head, token, j)));
        }
      }
    }
    return values;
  }
  std::string Write(int num_tokens, bool with_queries = true) const {
    std::vector<std::vector<uint16_t>> values;
    std::vector<TensorToWrite> tensors;
    values.reserve(3 * kLayers);
    const auto add = [&](const std::string& name, int tensor, int layer, int rows, int columns) {
      values.push_back(Tensor(tensor, layer, rows, columns));
      tensors.push_back({"layers." + std::to_string(layer) + name,
                         "F16",
                         {rows, columns, kDumpedDim},
                         std::as_bytes(std::span(values.back()))});
    };
    for (int layer = 0; layer < kLayers; ++layer) {
      add(".k", 0, layer, kKvHeads, num_tokens);
      add(".v", 1, layer, kKvHeads, num_tokens);
      if (with_queries) add(".q", 2, layer, kQueries, kQoHeads);
    }
    const std::string path = scratch_.path() + "/dump";
    EXPECT_THAT(WriteSafetensors(path, tensors, {}), IsOk());
    return path;
  }
  static float K(const SampleKv& sample, int head, int token, int channel) {
    return Float16ToFloat(sample.kv.view().k_row(head, token)[channel]);
  }
  static float V(const SampleKv& sample, int head, int token, int channel) {
    return Float16ToFloat(sample.kv.view().v_row(head, token)[channel]);
  }

  ScratchFolder scratch_;
};

TEST_F(DumpedSampleTest, TakesHeadsInTurnAndWholeBlocks) {
  const auto sample = DumpedSampleKv(
      Write(kTokens), {.num_qo_heads = 12, .num_kv_heads = 6, .head_dim = kDumpedDim});
  ASSERT_THAT(sample, IsOk());
  EXPECT_EQ(sample->num_blocks(), 2);
  EXPECT_EQ(sample->kv.num_tokens, 256);
  EXPECT_EQ(K(*sample, 1, 7, 20), Marker(0, 0, 1, 7, 20));
  EXPECT_EQ(V(*sample, 3, 255, 63), Marker(1, 1, 1, 255, 63));
  EXPECT_EQ(K(*sample, 4, 0, 0), Marker(0, 0, 0, 0, 0)) << "from the first again";
  // kv head 3 is layer 1, kv head 1: its query heads are 2 and 3.
  EXPECT_EQ(sample->query(1, 6)[5], Marker(2, 1, 2, 1, 5));
  EXPECT_EQ(sample->query(kQueries, 7)[50], Marker(2, 1, 3, 0, 50)) << "requests repeat";
  EXPECT_THAT(sample->description, HasSubstr("4 real (layer, kv head) of 64 channels, in turn"));
}

TEST_F(DumpedSampleTest, PutsHeadsSideBySideForALargerHeadDim) {
  const auto sample =
      DumpedSampleKv(Write(kTokens), {.num_qo_heads = 4, .num_kv_heads = 2, .head_dim = 128});
  ASSERT_THAT(sample, IsOk());
  EXPECT_EQ(K(*sample, 1, 9, 3), Marker(0, 1, 0, 9, 3));
  EXPECT_EQ(V(*sample, 1, 9, 64 + 3), Marker(1, 1, 1, 9, 3));
  EXPECT_EQ(sample->query(2, 3)[64 + 3], Marker(2, 1, 3, 2, 3));
  EXPECT_THAT(sample->description, HasSubstr("2 side by side"));
}

TEST_F(DumpedSampleTest, GivesMoreQueryHeadsThanThereAreTheQueriesOfOtherTokens) {
  const auto sample =
      DumpedSampleKv(Write(kTokens), {.num_qo_heads = 16, .num_kv_heads = 4, .head_dim = 64});
  ASSERT_THAT(sample, IsOk());
  EXPECT_EQ(sample->query(0, 1)[0], Marker(2, 0, 1, 0, 0));
  EXPECT_EQ(sample->query(0, 2)[0], Marker(2, 0, 0, 1, 0));
}

TEST_F(DumpedSampleTest, RefusesWhatIsNoDump) {
  const AttentionCase shape = {.num_qo_heads = 4, .num_kv_heads = 2, .head_dim = 64};
  EXPECT_THAT(DumpedSampleKv(scratch_.path() + "/none", shape),
              StatusIs(absl::StatusCode::kNotFound));
  const auto without_queries = DumpedSampleKv(Write(kTokens, false), shape);
  EXPECT_THAT(without_queries, StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(std::string(without_queries.status().message()), HasSubstr("layers.0.q"));
  EXPECT_THAT(DumpedSampleKv(Write(kBlockTokens), shape), IsOk());
  EXPECT_THAT(DumpedSampleKv(Write(kBlockTokens - 1), shape),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(RandomSampleTest, DoesNotDependOnThePool) {
  const AttentionCase shape = {.num_qo_heads = 4, .num_kv_heads = 2, .head_dim = 64};
  ThreadPool pool(3);
  const SampleKv alone = RandomSampleKv(shape, 2, nullptr), many = RandomSampleKv(shape, 2, &pool);
  EXPECT_EQ(alone.kv.k, many.kv.k);
  EXPECT_EQ(alone.kv.v, many.kv.v);
  EXPECT_EQ(alone.queries, many.queries);
  EXPECT_NE(alone.kv.k, alone.kv.v);
}

TEST(EncodeSampleTest, MakesFirstBlocksForPresetsWithSinks) {
  const AttentionCase shape = {.num_qo_heads = 4, .num_kv_heads = 2, .head_dim = 64};
  const SampleKv sample = RandomSampleKv(shape, 3, nullptr);
  const auto with_sinks = EncodeSample(sample, "default", nullptr);
  ASSERT_THAT(with_sinks, IsOk());
  ASSERT_EQ(with_sinks->first.size(), 3);
  EXPECT_EQ(with_sinks->first[2].header.num_sinks, 16);
  EXPECT_EQ(with_sinks->rest[2].header.num_sinks, 0);
  EXPECT_EQ(with_sinks->bank.num_k(), 32);
  const auto without = EncodeSample(sample, "kivi2", nullptr);
  ASSERT_THAT(without, IsOk());
  EXPECT_TRUE(without->first.empty());
  EXPECT_EQ(without->rest.size(), 3);
  EXPECT_EQ(without->bank.num_k(), 0);
  EXPECT_THAT(EncodeSample(sample, "none", nullptr), StatusIs(absl::StatusCode::kNotFound));
}

}  // namespace
}  // namespace pkv
