#ifndef PKV_TESTS_GOLDEN_GOLDEN_OBJECTS_H_
#define PKV_TESTS_GOLDEN_GOLDEN_OBJECTS_H_

// What the files in tests/golden/v2 hold. Entries are added at the end and never changed. Those of
// tests/golden/v1 are the first kNumObjectsOfFormat1, in the bytes of format 1.

#include <cstring>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "pkv/block/object_builder.h"
#include "tests/support/sample_object.h"

namespace pkv {

inline constexpr size_t kNumObjectsOfFormat1 = 10;

struct GoldenObject {
  std::string name;  // of the file, without ".bin"
  ObjectHeader header;
  uint64_t seed = 0;  // of FillSampleFrame; 0: the ramp of BLOCK_FORMAT.md's worked example
};

inline std::vector<GoldenObject> GoldenObjects() {
  constexpr uint8_t kAppendsBoth = kFlagAppendsK | kFlagAppendsV;
  return {
      {"table-k1-d64", SampleTableHeader({1, 1, 64}, 1, 0), 0},
      {"block-2bit-d128-patterns",
       SampleBlockHeader({.shape = {2, 2, 128},
                          .encoding = {2, 2, 128, 128, true},
                          .first_token = 256,
                          .num_patterns_k = 32,
                          .num_patterns_v = 16}),
       1},
      {"block-4bit-d64",
       SampleBlockHeader(
           {.shape = {2, 1, 64}, .encoding = {4, 4, 64, 32, false}, .first_token = 128}),
       2},
      {"block-fp16-d64", SampleBlockHeader({.shape = {1, 1, 64}}), 3},
      {"block-k2v4-d128-sinks",
       SampleBlockHeader({.shape = {1, 1, 128},
                          .encoding = {2, 4, 32, 64, true},
                          .num_sinks = 16,
                          .num_patterns_k = 5,
                          .num_patterns_v = 3}),
       4},
      {"block-k4v2-d64-appends",
       SampleBlockHeader({.shape = {1, 2, 64},
                          .encoding = {4, 2, 128, 64, true},
                          .first_token = 384,
                          .num_patterns_k = 254,
                          .num_patterns_v = 4,
                          .append_flags = kAppendsBoth}),
       5},
      {"block-2bit-d64-appends-v",
       SampleBlockHeader({.shape = {1, 1, 64},
                          .encoding = {2, 2, 64, 64, true},
                          .first_token = 128,
                          .num_patterns_v = 7,
                          .append_flags = kFlagAppendsV}),
       6},
      {"window-d128", SampleWindowHeader({2, 1, 128}, 512, 5), 7},
      {"window-start-d64", SampleWindowHeader({1, 2, 64}, 0, 1), 8},
      {"table-d128", SampleTableHeader({2, 2, 128}, 3, 2), 9},
      {"block-2bit-d128-fine",
       SampleBlockHeader({.shape = {2, 2, 128},
                          .encoding = {2, 2, 128, 128, true, kFineTokens, true},
                          .num_sinks = 16,
                          .num_patterns_k = 32,
                          .num_patterns_v = 32}),
       10},
      {"block-2bit-d64-fine",
       SampleBlockHeader({.shape = {1, 1, 64},
                          .encoding = {2, 2, 64, 64, false, kFineTokens, false},
                          .first_token = 128}),
       11},
      {"block-4bit-d64-rotated",
       SampleBlockHeader(
           {.shape = {1, 2, 64}, .encoding = {4, 4, 32, 32, false, 0, true}, .first_token = 256}),
       12},
  };
}

inline absl::StatusOr<ObjectBuilder> BuildGolden(const GoldenObject& object) {
  if (object.seed != 0) return BuildSample(object.header, object.seed);
  PKV_ASSIGN_OR_RETURN(ObjectBuilder builder, ObjectBuilder::Make(object.header));
  const std::span<std::byte> frame = builder.frame(0);
  for (size_t i = 0; i < frame.size() / 2; ++i) {
    // Channel i of the pattern is (i - 32) / 64, exact in fp16.
    const Float16Bits value = FloatToFloat16((static_cast<float>(i) - 32.0f) / 64.0f);
    std::memcpy(frame.data() + 2 * i, &value, sizeof(value));
  }
  PKV_RETURN_IF_ERROR(builder.Seal());
  return builder;
}

}  // namespace pkv

#endif  // PKV_TESTS_GOLDEN_GOLDEN_OBJECTS_H_
