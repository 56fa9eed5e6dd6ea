#include "worker/engine/model_shapes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

// Weights of the matrices, as the names of the models say.
double Billions(const ModelConfig& c) {
  const double q = double{1} * c.num_qo_heads * c.head_dim,
               kv = double{1} * c.num_kv_heads * c.head_dim;
  const double layer = c.hidden_size * (2 * q + 2 * kv + 3.0 * c.intermediate_size);
  return (c.num_layers * layer +
          double{1} * c.vocab_size * c.hidden_size * (c.tie_word_embeddings ? 1 : 2)) /
         1e9;
}

TEST(ModelShapesTest, ShapesAreThoseOfTheNamedModels) {
  EXPECT_EQ(std::lround(100 * Billions(*ModelShapeByName("llama-3.1-8b"))), 803);
  EXPECT_EQ(std::lround(100 * Billions(*ModelShapeByName("llama-3.2-1b"))), 124);
  EXPECT_EQ(std::lround(100 * Billions(*ModelShapeByName("qwen2.5-7b"))), 762);
  for (const std::string& name : ModelShapeNames()) {
    EXPECT_THAT(ValidateShape(ModelShapeByName(name)->kv_shape()), IsOk()) << name;
  }
}

TEST(ModelShapesTest, AnUnknownNameListsTheKnownOnes) {
  EXPECT_THAT(ModelShapeByName("llama-4"),
              StatusIs(absl::StatusCode::kNotFound, testing::HasSubstr("qwen2.5-7b")));
}

}  // namespace
}  // namespace pkv
