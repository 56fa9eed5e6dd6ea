#ifndef PKV_TESTS_SUPPORT_CUDA_TENSOR_H_
#define PKV_TESTS_SUPPORT_CUDA_TENSOR_H_

#include <span>
#include <vector>

#include "kernels/device/device_buffer.h"
#include "proto/base/log.h"
#include "tests/support/tensor_gen.h"

namespace pkv {

template <typename T>
DeviceBuffer OnDevice(const std::vector<T>& values, void* stream) {
  auto buffer = DeviceBuffer::CopyOf(std::as_bytes(std::span<const T>(values)), stream);
  PKV_CHECK(buffer.ok(), buffer.status().ToString());
  return *std::move(buffer);
}

// K and V of a TestTensor on the device.
class CudaTensor {
 public:
  // Copies `source`, which must live until the stream passes this point.
  CudaTensor(const TestTensor& source, void* stream)
      : k_(OnDevice(source.k, stream)), v_(OnDevice(source.v, stream)), like_(source.view()) {}

  MutableKvTensorView view() {
    return {k_.As<uint16_t>(), v_.As<uint16_t>(), like_.num_kv_heads,
            like_.num_tokens,  like_.head_dim,    like_.head_stride};
  }
  void CopyToHost(TestTensor& out) const {
    PKV_CHECK(k_.CopyToHost(std::as_writable_bytes(std::span(out.k))).ok());
    PKV_CHECK(v_.CopyToHost(std::as_writable_bytes(std::span(out.v))).ok());
  }

 private:
  DeviceBuffer k_, v_;
  KvTensorView like_;  // shape only
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_CUDA_TENSOR_H_
