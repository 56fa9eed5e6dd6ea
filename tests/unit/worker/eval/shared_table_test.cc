#include "worker/eval/shared_table.h"

#include <gtest/gtest.h>

#include "tests/unit/worker/eval/evaluation_driver.h"
#include "worker/sequence/window_flush.h"

namespace pkv {
namespace {

class SharedTableTest : public EvaluationTest {
 protected:
  static CalibrationKv Calibration(int num_passages, int stride) {
    std::vector<Passage> passages(num_passages);
    for (int i = 0; i < num_passages; ++i) passages[i].tokens = RandomPrompt(i + 1, 201);
    auto kv = ComputeCalibrationKv(*host_, passages, 200, stride);
    PKV_CHECK(kv.ok(), kv.status().ToString());
    return *std::move(kv);
  }
  static CodecParams Params(const char* preset) {
    auto params = PresetByName(preset, shape());
    PKV_CHECK(params.ok());
    return *std::move(params);
  }
  static std::shared_ptr<const std::vector<Codebook>> Table(const CodecParams& params) {
    auto table = MineSharedTable(Calibration(2, 1), shape().num_layers, params, nullptr);
    PKV_CHECK(table.ok(), table.status().ToString());
    return *std::move(table);
  }
};

TEST_F(SharedTableTest, KeepsEveryStrideThTokenAfterTheSinks) {
  EXPECT_EQ(Calibration(1, 1).num_tokens(), 136);
  EXPECT_EQ(Calibration(3, 2).num_tokens(), 3 * 68);
}

TEST_F(SharedTableTest, IsMinedInTheFrameOfItsVariant) {
  const auto plain = Table(Params("pkv2")), rotated = Table(Params("default"));
  ASSERT_EQ(plain->size(), size_t(shape().num_layers));
  EXPECT_EQ(plain->front().num_k(), 32);
  EXPECT_EQ(rotated->front().num_v(), 32);
  EXPECT_FALSE(std::ranges::equal(plain->front().k(0), rotated->front().k(0)));
}

TEST_F(SharedTableTest, GivesEqualPrefixesEqualBytesWhateverFollows) {
  const CodecParams params = Params("pkv2");
  const auto table = Table(params);
  const std::vector<int32_t> prompt = RandomPrompt(9, 300);
  const auto first_block = [&](int num_tokens) {
    auto sequence = host_->MakeReplicaSequence(params, table);
    PKV_CHECK(sequence.ok(), sequence.status().ToString());
    const auto tokens = std::span<const int32_t>(prompt).first(num_tokens);
    const std::unique_ptr<LlamaModel> model = host_->MakeReplica();
    PKV_CHECK(model->Forward(tokens, 0, **sequence, num_tokens, nullptr).ok());
    PKV_CHECK(EncodeBlocks(1, Phase::kPrefill, tokens, **sequence).ok());
    const auto bytes = (*sequence)->made_objects().blocks[0]->bytes();
    const auto made_table = (*sequence)->made_objects().table->bytes();
    return std::pair(std::vector(bytes.begin(), bytes.end()),
                     std::vector(made_table.begin(), made_table.end()));
  };
  EXPECT_EQ(first_block(140), first_block(290));
}

TEST_F(SharedTableTest, OfAnotherModelIsRefused) {
  const auto table = std::make_shared<std::vector<Codebook>>(1, Codebook(1, 64));
  EXPECT_THAT(host_->MakeReplicaSequence(Params("pkv2"), table),
              StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("1 layers")));
}

}  // namespace
}  // namespace pkv
