// K with clip search, gain correction, fine codes and error feedback, with and without slots.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/layer_fixture.h"

namespace pkv {
namespace {

using KeySearchParityTest = LayerParityTest;

TEST_P(KeySearchParityTest, WritesTheFramesOfTheBlocksAndNothingElse) { ExpectFramesOfTheCpu(); }

std::vector<LayerCase> Cases() {
  std::vector<LayerCase> cases;
  for (const char* preset : {"default", "default4"}) {
    for (const int head_dim : {64, 128}) {
      for (const int sinks : {0, 4, 16, 64}) {
        for (const bool has_feedback : {false, true}) {
          cases.push_back({preset, head_dim, 4, 2 * kBlockTokens + 5, sinks, has_feedback, false});
          cases.push_back({preset, head_dim, 3, 2 * kBlockTokens, sinks, has_feedback, true});
        }
      }
    }
  }
  // As many patterns as there are ids.
  for (const int head_dim : {64, 128}) {
    LayerCase c = {"default", head_dim, 3, 2 * kBlockTokens + 40, 4, true, true};
    c.num_patterns = kMaxPatterns;
    cases.push_back(c);
  }
  // Feedback alone.
  for (const char* preset : {"kivi2", "pkv4"}) {
    for (const int head_dim : {64, 128}) {
      for (const int sinks : {0, 64}) {
        cases.push_back({preset, head_dim, 4, 2 * kBlockTokens, sinks, true, false});
      }
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Layers, KeySearchParityTest, testing::ValuesIn(Cases()));

}  // namespace
}  // namespace pkv
