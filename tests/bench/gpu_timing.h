#ifndef PKV_TESTS_BENCH_GPU_TIMING_H_
#define PKV_TESTS_BENCH_GPU_TIMING_H_

#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/bench/report.h"

namespace pkv {

// Times of one launch, taken over repetitions of many launches between two CUDA events.
struct LaunchTimes {
  SampleSummary us = {};
  int launches = 0;
  bool graph = true;
};

// Calls launch(i), which enqueues on `stream`, for i in [0, rotation) once to warm up and to see
// how long one takes; then captures rotations of it into a graph that runs for a millisecond at
// least, and times `repetitions` of that. What cannot be captured is enqueued again each time.
absl::StatusOr<LaunchTimes> TimeLaunches(void* stream, int rotation, int repetitions,
                                         const std::function<absl::Status(int)>& launch);

// The current device. FailedPrecondition: there is none.
absl::StatusOr<DeviceInfo> DescribeDevice();

// What memory can do when nothing is done with the bytes, over 4 GiB.
absl::StatusOr<Ceilings> MeasureCeilings(void* stream, int repetitions);

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_GPU_TIMING_H_
