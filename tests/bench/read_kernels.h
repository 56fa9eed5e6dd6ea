#ifndef PKV_TESTS_BENCH_READ_KERNELS_H_
#define PKV_TESTS_BENCH_READ_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

namespace pkv {

// Reads `bytes` once, 16 bytes a thread at a time past L1, and keeps nothing. bytes: a multiple of
// kReadGranule. sink: never written, but the compiler cannot know.
inline constexpr int64_t kReadGranule = int64_t{1} << 20;
cudaError_t LaunchReadLoads(const std::byte* data, int64_t bytes, int num_ctas, uint32_t* sink,
                            cudaStream_t stream);
// The same by bulk copies into a ring in shared memory that nobody reads.
cudaError_t LaunchReadBulk(const std::byte* data, int64_t bytes, int num_ctas, cudaStream_t stream);
// Copies `bytes`, a multiple of kReadGranule, 16 at a time past L1.
cudaError_t LaunchCopy(std::byte* to, const std::byte* from, int64_t bytes, int num_ctas,
                       cudaStream_t stream);
// Noise, so that no memory compresses: bytes a multiple of 16.
cudaError_t LaunchFillNoise(std::byte* data, int64_t bytes, cudaStream_t stream);

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_READ_KERNELS_H_
