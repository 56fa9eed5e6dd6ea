#include "tests/bench/gpu_timing.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/device/cuda_status.h"
#include "kernels/device/device_buffer.h"
#include "proto/base/status_macros.h"
#include "tests/bench/read_kernels.h"

namespace pkv {
namespace {

// Long against the microseconds of a graph's launch, also when one by one the launches wait for the
// host and the graph turns out three times as quick.
constexpr double kLeastGraphUs = 3000;
constexpr int kMostLaunches = 2000;  // of one graph
constexpr int kWarmUps = 3;
constexpr int64_t kCeilingBytes = int64_t{4} << 30;
static_assert(kCeilingBytes % kReadGranule == 0);

cudaStream_t AsStream(void* stream) { return static_cast<cudaStream_t>(stream); }

struct DestroyEvent {
  void operator()(cudaEvent_t event) const { static_cast<void>(cudaEventDestroy(event)); }
};
struct DestroyGraph {
  void operator()(cudaGraphExec_t graph) const { static_cast<void>(cudaGraphExecDestroy(graph)); }
};
using Event = std::unique_ptr<CUevent_st, DestroyEvent>;
using GraphExec = std::unique_ptr<CUgraphExec_st, DestroyGraph>;

absl::StatusOr<Event> MakeEvent() {
  cudaEvent_t event = nullptr;
  PKV_RETURN_IF_ERROR(CudaStatus(cudaEventCreate(&event), "create event"));
  return Event(event);
}

// Microseconds that what `enqueue` puts on the stream takes.
absl::StatusOr<double> TimeOnce(void* stream, const std::function<absl::Status()>& enqueue) {
  PKV_ASSIGN_OR_RETURN(const Event begin, MakeEvent());
  PKV_ASSIGN_OR_RETURN(const Event end, MakeEvent());
  PKV_RETURN_IF_ERROR(CudaStatus(cudaEventRecord(begin.get(), AsStream(stream)), "record event"));
  PKV_RETURN_IF_ERROR(enqueue());
  PKV_RETURN_IF_ERROR(CudaStatus(cudaEventRecord(end.get(), AsStream(stream)), "record event"));
  PKV_RETURN_IF_ERROR(CudaStatus(cudaEventSynchronize(end.get()), "run what is timed"));
  float ms = 0;
  PKV_RETURN_IF_ERROR(CudaStatus(cudaEventElapsedTime(&ms, begin.get(), end.get()), "read events"));
  return ms * 1e3;
}

// Null when the launches cannot be captured.
GraphExec Capture(void* stream, const std::function<absl::Status()>& enqueue) {
  cudaGraph_t graph = nullptr;
  if (cudaStreamBeginCapture(AsStream(stream), cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
    return nullptr;
  }
  const bool enqueued = enqueue().ok();
  const cudaError_t ended = cudaStreamEndCapture(AsStream(stream), &graph);
  cudaGraphExec_t exec = nullptr;
  if (enqueued && ended == cudaSuccess && graph != nullptr) {
    if (cudaGraphInstantiate(&exec, graph, 0) != cudaSuccess) exec = nullptr;
  }
  if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
  static_cast<void>(cudaGetLastError());  // an attempt that failed is no error of what follows
  return GraphExec(exec);
}

// Best rate of the ways to read `data`.
absl::Status MeasureRead(void* stream, DeviceBuffer& data, int num_sms, int repetitions,
                         Ceilings& ceilings) {
  PKV_ASSIGN_OR_RETURN(DeviceBuffer sink, DeviceBuffer::Make(sizeof(uint32_t), stream));
  for (const bool bulk : {false, true}) {
    for (const int ctas : {1, 2, 3, 4}) {
      if (bulk && ctas == 4) continue;  // three rings fill the shared memory
      PKV_ASSIGN_OR_RETURN(const LaunchTimes times, TimeLaunches(stream, 1, repetitions, [&](int) {
                             const cudaError_t error =
                                 bulk ? LaunchReadBulk(data.data(), kCeilingBytes, ctas * num_sms,
                                                       AsStream(stream))
                                      : LaunchReadLoads(data.data(), kCeilingBytes, ctas * num_sms,
                                                        sink.As<uint32_t>(), AsStream(stream));
                             return CudaStatus(error, "read a stream");
                           }));
      const double rate = kCeilingBytes / (times.us.median * 1e-6);
      if (rate <= ceilings.read_bytes_per_s) continue;
      ceilings.read_bytes_per_s = rate;
      ceilings.read_by =
          absl::StrCat(bulk ? "bulk copies" : "16-byte loads", ", ", ctas, " CTAs an SM");
    }
  }
  return absl::OkStatus();
}

// Best rate of the ways to copy one half of `data` to the other.
absl::Status MeasureCopy(void* stream, DeviceBuffer& data, int num_sms, int repetitions,
                         Ceilings& ceilings) {
  constexpr int64_t kHalf = kCeilingBytes / 2;
  std::byte* to = data.data() + kHalf;
  for (const int ctas : {0, 1, 2, 4, 8}) {  // 0: the driver's copy
    PKV_ASSIGN_OR_RETURN(
        const LaunchTimes times, TimeLaunches(stream, 1, repetitions, [&](int) {
          const cudaError_t error =
              ctas == 0 ? cudaMemcpyAsync(to, data.data(), kHalf, cudaMemcpyDeviceToDevice,
                                          AsStream(stream))
                        : LaunchCopy(to, data.data(), kHalf, ctas * num_sms, AsStream(stream));
          return CudaStatus(error, "copy a buffer");
        }));
    const double rate = kCeilingBytes / (times.us.median * 1e-6);
    if (rate <= ceilings.copy_bytes_per_s) continue;
    ceilings.copy_bytes_per_s = rate;
    ceilings.copy_by = ctas == 0 ? "driver" : absl::StrCat("16-byte loads, ", ctas, " CTAs an SM");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LaunchTimes> TimeLaunches(void* stream, int rotation, int repetitions,
                                         const std::function<absl::Status(int)>& launch) {
  const auto enqueue = [&](int launches) -> absl::Status {
    for (int i = 0; i < launches; ++i) PKV_RETURN_IF_ERROR(launch(i % rotation));
    return absl::OkStatus();
  };
  PKV_RETURN_IF_ERROR(enqueue(rotation));
  PKV_ASSIGN_OR_RETURN(const double rotation_us,
                       TimeOnce(stream, [&] { return enqueue(rotation); }));
  const double wanted = std::ceil(kLeastGraphUs / std::max(rotation_us, 1.0));
  const int rotations = std::clamp(static_cast<int>(wanted), 1, 1 + kMostLaunches / rotation);
  LaunchTimes times;
  times.launches = rotations * rotation;
  const GraphExec graph = Capture(stream, [&] { return enqueue(times.launches); });
  times.graph = graph != nullptr;
  const auto run = [&]() -> absl::Status {
    if (graph == nullptr) return enqueue(times.launches);
    return CudaStatus(cudaGraphLaunch(graph.get(), AsStream(stream)), "launch graph");
  };
  std::vector<double> samples;
  for (int i = 0; i < kWarmUps + repetitions; ++i) {
    PKV_ASSIGN_OR_RETURN(const double us, TimeOnce(stream, run));
    if (i >= kWarmUps) samples.push_back(us / times.launches);
  }
  times.us = Summarize(std::move(samples));
  return times;
}

absl::StatusOr<DeviceInfo> DescribeDevice() {
  int device = 0;
  PKV_RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&device), "find a CUDA device"));
  cudaDeviceProp properties;
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaGetDeviceProperties(&properties, device), "describe the CUDA device"));
  DeviceInfo info;
  info.name = properties.name;
  info.num_sms = properties.multiProcessorCount;
  info.l2_bytes = properties.l2CacheSize;
  info.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaDeviceGetAttribute(&info.sm_clock_khz, cudaDevAttrClockRate, device),
                 "read the clock of the multiprocessors"));
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaDeviceGetAttribute(&info.memory_clock_khz, cudaDevAttrMemoryClockRate, device),
                 "read the clock of the memory"));
  PKV_RETURN_IF_ERROR(CudaStatus(cudaDriverGetVersion(&info.driver_version), "read the driver"));
  PKV_RETURN_IF_ERROR(CudaStatus(cudaRuntimeGetVersion(&info.runtime_version), "read the runtime"));
  return info;
}

absl::StatusOr<Ceilings> MeasureCeilings(void* stream, int repetitions) {
  PKV_ASSIGN_OR_RETURN(const DeviceInfo device, DescribeDevice());
  Ceilings ceilings;
  PKV_ASSIGN_OR_RETURN(DeviceBuffer data, DeviceBuffer::Make(kCeilingBytes, stream));
  PKV_RETURN_IF_ERROR(
      CudaStatus(LaunchFillNoise(data.data(), kCeilingBytes, AsStream(stream)), "fill a buffer"));
  PKV_RETURN_IF_ERROR(MeasureRead(stream, data, device.num_sms, repetitions, ceilings));
  PKV_RETURN_IF_ERROR(MeasureCopy(stream, data, device.num_sms, repetitions, ceilings));
  return ceilings;
}

}  // namespace pkv
