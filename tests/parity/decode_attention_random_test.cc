// Decode attention on the device against the fp64 reference, on random shapes and lengths.
//
//   parity.decode_attention_random_test [--cases=N] [--seed=S] [--kernel=CudaCore|TensorCore]
//
// A failure prints its seed: --cases=1 --seed=S runs that case alone.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <atomic>
#include <iostream>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "proto/base/sync.h"
#include "proto/base/thread_pool.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/decode_device.h"
#include "tests/support/random_decode_spec.h"

namespace pkv {
namespace {

int num_cases = 200;
uint64_t first_seed = 1;
std::string only_kernel;  // empty: both

bool IsWanted(DecodeKernel kernel) { return only_kernel.empty() || only_kernel == NameOf(kernel); }

struct KernelTotals {
  DecodeErrors all, half_outputs;
  double largest_frobenius = 0;
  int cases = 0;
};

// What all threads found. Thread-safe.
class Totals {
 public:
  void Add(DecodeKernel kernel, const DecodeCaseSpec& spec, const DecodeErrors& errors) {
    MutexLock lock(&mu_);
    KernelTotals& totals = kernels_[ArithmeticOf(kernel)];
    ++totals.cases;
    totals.all.Add(errors);
    if (spec.shape.query_type != QueryType::kFloat16) return;
    totals.half_outputs.Add(errors);
    totals.largest_frobenius = std::max(totals.largest_frobenius, errors.frobenius());
  }
  void Fail(const std::string& message) {
    constexpr size_t kShown = 5;
    MutexLock lock(&mu_);
    ++num_failures_;
    if (messages_.size() < kShown) messages_.push_back(message);
  }
  bool failed() const {
    MutexLock lock(&mu_);
    return num_failures_ > 0;
  }
  KernelTotals of(DecodeKernel kernel) const {
    MutexLock lock(&mu_);
    return kernels_[ArithmeticOf(kernel)];
  }
  std::vector<std::string> messages() const {
    MutexLock lock(&mu_);
    return messages_;
  }

 private:
  mutable Mutex mu_;
  KernelTotals kernels_[2] ABSL_GUARDED_BY(mu_);
  int num_failures_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<std::string> messages_ ABSL_GUARDED_BY(mu_);
};

void RunCase(uint64_t seed, Totals& totals) {
  const DecodeCaseSpec spec = RandomDecodeSpec(seed).Draw();
  DecodeCase of(spec);
  const DecodeCheck check(of);
  const auto stream = Stream::Make();
  PKV_CHECK(stream.ok(), stream.status().ToString());
  for (const DecodeKernel kernel : kDecodeKernels) {
    if (!IsWanted(kernel)) continue;
    const auto fail = [&](const std::string& problem) {
      std::ostringstream message;
      message << NameOf(kernel) << ", " << spec << "\n  " << problem;
      totals.Fail(message.str());
    };
    DecodeAttentionShape shape = spec.shape;
    shape.kernel = kernel;
    const auto attention = DecodeAttention::Make(shape, CudaContext(stream->handle()));
    if (absl::IsUnimplemented(attention.status()) && !TakesShape(kernel, shape)) continue;
    if (!attention.ok()) return fail(attention.status().ToString());
    const auto after = RunOnce(**attention, of, stream->handle());
    if (!after.ok()) return fail(after.status().ToString());
    DecodeErrors errors;
    const std::string problem = check.Problem(*after, kernel, /*is_random=*/true, &errors);
    if (!problem.empty()) return fail(problem);
    totals.Add(kernel, spec, errors);
  }
}

// Scratch that is freed stays with the process: otherwise every case would map memory again.
void KeepFreedMemory() {
  cudaMemPool_t pool;
  ASSERT_EQ(cudaDeviceGetDefaultMemPool(&pool, 0), cudaSuccess);
  uint64_t all = UINT64_MAX;
  ASSERT_EQ(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all), cudaSuccess);
}

using DecodeAttentionRandomTest = CudaTest;

TEST_F(DecodeAttentionRandomTest, EveryCaseIsWithinItsBounds) {
  RecordProperty("first seed", std::to_string(first_seed));
  KeepFreedMemory();
  Totals totals;
  ThreadPool pool(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  pool.ParallelFor(num_cases, [&](int i) {
    if (!totals.failed()) RunCase(first_seed + static_cast<uint64_t>(i), totals);
  });
  for (const std::string& message : totals.messages()) ADD_FAILURE() << message;
  for (const DecodeKernel kernel : kDecodeKernels) {
    if (!IsWanted(kernel)) continue;
    const KernelTotals found = totals.of(kernel);
    std::cout << NameOf(kernel) << ": " << found.cases << " cases from seed " << first_seed << ", "
              << found.all << "; fp16 outputs: " << found.half_outputs.frobenius()
              << ", worst case " << found.largest_frobenius << "\n";
    EXPECT_LE(found.half_outputs.frobenius(), kDecodeFrobenius) << NameOf(kernel);
  }
}

}  // namespace

bool ReadArgument(absl::string_view argument) {
  if (absl::ConsumePrefix(&argument, "--cases=")) return absl::SimpleAtoi(argument, &num_cases);
  if (absl::ConsumePrefix(&argument, "--seed=")) return absl::SimpleAtoi(argument, &first_seed);
  if (!absl::ConsumePrefix(&argument, "--kernel=")) return false;
  only_kernel = std::string(argument);
  return IsWanted(DecodeKernel::kCudaCore) || IsWanted(DecodeKernel::kTensorCore);
}

}  // namespace pkv

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    if (pkv::ReadArgument(argv[i])) continue;
    std::cerr << argv[i] << ": not --cases=N, --seed=S or --kernel=CudaCore|TensorCore\n";
    return 2;
  }
  return RUN_ALL_TESTS();
}
