#ifndef PKV_TESTS_SUPPORT_CUDA_FIXTURE_H_
#define PKV_TESTS_SUPPORT_CUDA_FIXTURE_H_

#include <gtest/gtest.h>

#include <memory>
#include <utility>

#include "kernels/device/stream.h"

namespace pkv {

// Skips its tests on a machine without a CUDA device, in the words that ctest looks for.
class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    auto stream = Stream::Make();
    if (absl::IsFailedPrecondition(stream.status())) {
      GTEST_SKIP() << "skipped: no CUDA device (" << stream.status().message() << ")";
    }
    ASSERT_TRUE(stream.ok()) << stream.status();
    stream_ = std::make_unique<Stream>(*std::move(stream));
  }

  void* stream() const { return stream_->handle(); }

 private:
  std::unique_ptr<Stream> stream_;
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_CUDA_FIXTURE_H_
