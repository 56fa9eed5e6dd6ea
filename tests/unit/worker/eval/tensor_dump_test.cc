#include "worker/eval/tensor_dump.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/unit/worker/eval/evaluation_driver.h"
#include "worker/engine/safetensors.h"

namespace pkv {
namespace {

class TensorDumpTest : public EvaluationTest {};

TEST_F(TensorDumpTest, ReadsBackWhatTheRunCaptured) {
  const ScoringOptions options = Options({}).scoring;
  const std::vector<int32_t> passage = RandomPrompt(1, 317);
  const std::unique_ptr<LlamaModel> model = host_->MakeReplica();
  const auto run = RunReference(*host_, *model, passage, options);
  ASSERT_THAT(run, IsOk());
  const ScratchFolder folder;
  const std::string path = folder.path() + "/dump.safetensors";
  ASSERT_THAT(DumpTensors(**run, shape(), {{"text", "a \"book\""}}, path), IsOk());

  const auto file = SafetensorsFile::Open(path);
  ASSERT_THAT(file, IsOk());
  const auto& tensors = (*file)->tensors();
  ASSERT_EQ(tensors.size(), 4u * 2);
  const auto equal = [&](const std::string& name, std::vector<int64_t> dimensions,
                         int64_t first_element, std::span<const uint16_t> values) {
    const TensorView& tensor = tensors.at(name);
    EXPECT_EQ(tensor.dtype, "F16") << name;
    EXPECT_EQ(tensor.shape, dimensions) << name;
    EXPECT_EQ(
        std::memcmp(tensor.bytes.data() + 2 * first_element, values.data(), values.size_bytes()), 0)
        << name;
  };
  const KvTensorView kv = (*run)->kv.layer(1);
  for (int head = 0; head < 2; ++head) {
    const int64_t size = 316 * 128;
    equal("layers.1.k", {2, 316, 128}, head * size, {kv.k_row(head, 0), size_t(size)});
    equal("layers.1.v", {2, 316, 128}, head * size, {kv.v_row(head, 0), size_t(size)});
  }
  equal("layers.1.q_prefix", {300, 4, 128}, 0, (*run)->prefix_queries.layer(1));
  equal("layers.0.q", {16, 4, 128}, 0, (*run)->scored_queries.layer(0));
}

}  // namespace
}  // namespace pkv
