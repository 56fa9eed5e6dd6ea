#ifndef PKV_WORKER_ENGINE_SAFETENSORS_H_
#define PKV_WORKER_ENGINE_SAFETENSORS_H_

// Reads weights in the safetensors format: u64 header length, JSON header, tensor bytes.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "pkv/block/digest.h"

namespace pkv {

class ThreadPool;

// A tensor inside a mapped file. Does not own.
struct TensorView {
  std::string dtype;  // as written: "F16", "BF16", "F32", ...
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;  // in no particular alignment
};

// One file, mapped read-only. Every offset was checked against the file's length when it was
// opened; the file must not be truncated while it is mapped (SIGBUS).
// Thread-safe (immutable).
class SafetensorsFile {
 public:
  //   NotFound   the file cannot be opened
  //   DataLoss   a header longer than 100 MB or than the file, no JSON, an offset outside the file,
  //              a size that is not shape times element; names the tensor
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  explicit SafetensorsFile(std::span<const std::byte> bytes) : bytes_(bytes) {}

  std::span<const std::byte> bytes_;
  std::map<std::string, TensorView> tensors_;
};

// The weight files of a Hugging Face directory: model.safetensors, or the shards that
// model.safetensors.index.json lists.
// Thread-safe (immutable).
class WeightFiles {
 public:
  //   NotFound  neither is there, or a listed shard is not
  //   DataLoss  as SafetensorsFile::Open, or the index is not JSON of the known form, names a file
  //             outside the directory, or two shards hold one tensor
  static absl::StatusOr<WeightFiles> Open(const std::string& directory);

  bool Contains(const std::string& name) const { return tensors_.contains(name); }
  // The tensor's dtype as written; empty without such a tensor.
  std::string dtype(const std::string& name) const;

  // The tensor as fp32, row-major; exact for F16, BF16 and F32.
  //   DataLoss  no such tensor, another shape than `shape`, or another dtype; names it
  absl::StatusOr<std::vector<float>> Read(const std::string& name, std::span<const int64_t> shape,
                                          ThreadPool* pool) const;

  // SHA-256 of the files' bytes one after the other, in the order of their names, then of `suffix`.
  Digest ComputeDigest(absl::string_view suffix) const;

 private:
  std::vector<std::unique_ptr<SafetensorsFile>> files_;  // by name
  std::map<std::string, const TensorView*> tensors_;
};

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_SAFETENSORS_H_
