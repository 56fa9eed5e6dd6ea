// Variants whose scales come from minimum and maximum alone: every group, width and geometry.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/layer_fixture.h"

namespace pkv {
namespace {

using DirectEncoderParityTest = LayerParityTest;

TEST_P(DirectEncoderParityTest, WritesTheFramesOfTheBlocksAndNothingElse) {
  ExpectFramesOfTheCpu();
}

std::vector<LayerCase> Cases() {
  std::vector<LayerCase> cases;
  for (const char* preset : {"kivi2", "kivi2-g32", "kivi4-g64", "pkv2", "pkv4"}) {
    for (const int head_dim : {64, 128}) {
      for (const int heads : {1, 2, 8}) {
        cases.push_back({preset, head_dim, heads, 2 * kBlockTokens + 17});
      }
      for (const int sinks : {0, 4, 16, 64}) {
        cases.push_back({preset, head_dim, 4, 2 * kBlockTokens, sinks});
      }
    }
  }
  for (const char* preset : {"kivi2", "pkv2"}) {
    for (const int head_dim : {64, 128}) {
      for (const int group : {32, 64, 128}) {
        for (const int bits : {2, 4}) {
          for (const int sinks : {0, 4, 64}) {
            cases.push_back(
                {preset, head_dim, 4, 2 * kBlockTokens, sinks, false, false, group, bits, bits});
          }
        }
      }
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Layers, DirectEncoderParityTest, testing::ValuesIn(Cases()));

}  // namespace
}  // namespace pkv
