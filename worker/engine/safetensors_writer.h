#ifndef PKV_WORKER_ENGINE_SAFETENSORS_WRITER_H_
#define PKV_WORKER_ENGINE_SAFETENSORS_WRITER_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace pkv {

// One tensor to be written. `bytes` are row-major, little endian, and outlive the call.
struct TensorToWrite {
  std::string name;
  std::string dtype;  // "F16", "F32", ...
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};

// Writes a safetensors file that SafetensorsFile reads: the tensors in the order given, `metadata`
// as the header's __metadata__. Whatever stood at `path` is replaced.
//   InvalidArgument  two tensors of one name, or named __metadata__
//   Internal         the file cannot be written; names it and why
absl::Status WriteSafetensors(const std::string& path, std::span<const TensorToWrite> tensors,
                              const std::map<std::string, std::string>& metadata);

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_SAFETENSORS_WRITER_H_
