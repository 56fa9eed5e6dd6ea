// V with clip search and gain correction at widths that differ from those of K.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/layer_fixture.h"

namespace pkv {
namespace {

using ValueSearchParityTest = LayerParityTest;

TEST_P(ValueSearchParityTest, WritesTheFramesOfTheBlocksAndNothingElse) { ExpectFramesOfTheCpu(); }

std::vector<LayerCase> Cases() {
  std::vector<LayerCase> cases;
  for (const int head_dim : {64, 128}) {
    for (const int sinks : {0, 4, 16, 64}) {
      for (const int bits : {22, 24, 42, 44}) {
        cases.push_back({"default", head_dim, 4, 2 * kBlockTokens, sinks, false, false, 0,
                         bits / 10, bits % 10});
      }
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Layers, ValueSearchParityTest, testing::ValuesIn(Cases()));

}  // namespace
}  // namespace pkv
