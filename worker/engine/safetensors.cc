#include "worker/engine/safetensors.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"
#include "proto/base/checked_math.h"
#include "proto/base/float16.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/base/thread_pool.h"

namespace pkv {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kLengthBytes = 8;
// The limit of the reference implementation.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
// An index names each tensor once; 405 billion parameters make a file of 100 KB.
constexpr uintmax_t kMaxIndexBytes = 100'000'000;
constexpr size_t kMaxRank = 8;

absl::Status Malformed(const std::string& path, absl::string_view what) {
  return absl::DataLossError(absl::StrCat(path, ": ", what));
}

// Bytes of one element; none for a dtype the format does not define.
std::optional<uint64_t> ElementBytes(const std::string& dtype) {
  static const std::map<std::string, uint64_t>* const bytes = new std::map<std::string, uint64_t>{
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
      {"U32", 4},  {"F32", 4}, {"I64", 8}, {"U64", 8},     {"F64", 8}};
  const auto it = bytes->find(dtype);
  if (it == bytes->end()) return std::nullopt;
  return it->second;
}

std::string ShapeText(std::span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

bool IsListOfUnsigned(const Json& value) {
  return value.is_array() && std::all_of(value.begin(), value.end(), [](const Json& v) {
           return v.is_number_unsigned() && v.get<uint64_t>() <= uint64_t{INT64_MAX};
         });
}

absl::StatusOr<TensorView> ParseTensor(const Json& entry, std::span<const std::byte> data) {
  if (!entry.is_object() || !entry.contains("dtype") || !entry["dtype"].is_string() ||
      !entry.contains("shape") || !IsListOfUnsigned(entry["shape"]) ||
      !entry.contains("data_offsets") || !IsListOfUnsigned(entry["data_offsets"]) ||
      entry["data_offsets"].size() != 2) {
    return absl::DataLossError("no dtype, shape and two data_offsets of the right types");
  }
  TensorView tensor;
  tensor.dtype = entry["dtype"].get<std::string>();
  tensor.shape = entry["shape"].get<std::vector<int64_t>>();
  const uint64_t begin = entry["data_offsets"][0].get<uint64_t>();
  const uint64_t end = entry["data_offsets"][1].get<uint64_t>();
  if (begin > end || end > data.size()) {
    return absl::DataLossError(absl::StrCat("data_offsets [", begin, ", ", end,
                                            "] are not within the ", data.size(),
                                            " bytes after the header"));
  }
  if (tensor.shape.size() > kMaxRank) {
    return absl::DataLossError(absl::StrCat("rank ", tensor.shape.size(), " above ", kMaxRank));
  }
  const std::optional<uint64_t> element_bytes = ElementBytes(tensor.dtype);
  if (!element_bytes.has_value()) {
    return absl::DataLossError(absl::StrCat("dtype '", tensor.dtype.substr(0, 40), "' is unknown"));
  }
  absl::StatusOr<uint64_t> size = *element_bytes;
  for (const int64_t dimension : tensor.shape) {
    if (size.ok()) size = CheckedMultiply(*size, dimension);
  }
  if (!size.ok() || *size != end - begin) {
    return absl::DataLossError(
        absl::StrCat(end - begin, " bytes for ", tensor.dtype, " ", ShapeText(tensor.shape)));
  }
  tensor.bytes = data.subspan(begin, end - begin);
  return tensor;
}

// fp32 values of `count` elements from `first` on.
void ConvertToFloat(const TensorView& tensor, int64_t first, int64_t count, float* out) {
  if (tensor.dtype == "F32") {
    std::memcpy(out, tensor.bytes.data() + 4 * first, 4 * count);
    return;
  }
  const bool is_bf16 = tensor.dtype == "BF16";
  const std::byte* source = tensor.bytes.data() + 2 * first;
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, source + 2 * i, sizeof(bits));
    out[i] = is_bf16 ? std::bit_cast<float>(uint32_t{bits} << 16) : Float16ToFloat(bits);
  }
}

absl::StatusOr<std::span<const std::byte>> MapFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  struct stat stat;
  void* address = MAP_FAILED;
  const bool is_file = fstat(fd, &stat) == 0 && S_ISREG(stat.st_mode);
  if (is_file && stat.st_size > 0) {
    address = mmap(nullptr, stat.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
  }
  const int error = errno;
  close(fd);
  if (!is_file) return absl::NotFoundError(absl::StrCat(path, ": not a regular file"));
  if (stat.st_size == 0) return Malformed(path, "0 bytes");
  if (address == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path, ": mmap of ", stat.st_size, " bytes: ", std::strerror(error)));
  }
  return std::span(static_cast<const std::byte*>(address), static_cast<size_t>(stat.st_size));
}

// Names of the shards that an index lists.
absl::StatusOr<std::set<std::string>> ReadIndex(const std::string& path) {
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) return absl::NotFoundError(absl::StrCat(path, ": ", error.message()));
  if (size > kMaxIndexBytes) {
    return Malformed(path, absl::StrCat(size, " bytes, more than ", kMaxIndexBytes));
  }
  std::ifstream file(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const Json index = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    return Malformed(path, "no JSON object with a weight_map");
  }
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : index["weight_map"].items()) {
    if (!shard.is_string() || shard.get<std::string>().find('/') != std::string::npos) {
      return Malformed(path,
                       absl::StrCat("weight_map of ", tensor, " is ", shard.dump().substr(0, 100),
                                    ", not the name of a file beside it"));
    }
    shards.insert(shard.get<std::string>());
  }
  return shards;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  PKV_ASSIGN_OR_RETURN(const std::span<const std::byte> bytes, MapFile(path));
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile(bytes));  // unmaps on every way out
  if (bytes.size() < kLengthBytes) {
    return Malformed(path, absl::StrCat(bytes.size(), " bytes, fewer than ", kLengthBytes));
  }
  uint64_t header_bytes;
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - kLengthBytes) {
    return Malformed(path, absl::StrCat("header of ", header_bytes, " bytes exceeds ",
                                        kMaxHeaderBytes, " or the file's ", bytes.size()));
  }
  const char* text = reinterpret_cast<const char*>(bytes.data() + kLengthBytes);
  const Json header = Json::parse(text, text + header_bytes, nullptr, /*allow_exceptions=*/false);
  if (!header.is_object()) return Malformed(path, "the header is not a JSON object");
  const std::span<const std::byte> data = bytes.subspan(kLengthBytes + header_bytes);
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    absl::StatusOr<TensorView> tensor = ParseTensor(entry, data);
    if (!tensor.ok()) {
      return Malformed(
          path, absl::StrCat("tensor ", name.substr(0, 200), ": ", tensor.status().message()));
    }
    file->tensors_.emplace(name, *std::move(tensor));
  }
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

absl::StatusOr<WeightFiles> WeightFiles::Open(const std::string& directory) {
  std::set<std::string> names = {"model.safetensors"};
  const std::string index = absl::StrCat(directory, "/model.safetensors.index.json");
  std::error_code error;
  if (!std::filesystem::exists(absl::StrCat(directory, "/model.safetensors"), error) &&
      std::filesystem::exists(index, error)) {
    PKV_ASSIGN_OR_RETURN(names, ReadIndex(index));
  }
  WeightFiles weights;
  for (const std::string& name : names) {
    const std::string path = absl::StrCat(directory, "/", name);
    PKV_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(path));
    for (const auto& [tensor_name, tensor] : file->tensors()) {
      if (!weights.tensors_.emplace(tensor_name, &tensor).second) {
        return Malformed(path, absl::StrCat("tensor ", tensor_name, " is in another file too"));
      }
    }
    weights.files_.push_back(std::move(file));
  }
  return weights;
}

std::string WeightFiles::dtype(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? std::string() : it->second->dtype;
}

absl::StatusOr<std::vector<float>> WeightFiles::Read(const std::string& name,
                                                     std::span<const int64_t> shape,
                                                     ThreadPool* pool) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) {
    return absl::DataLossError(absl::StrCat("tensor ", name, " is missing"));
  }
  const TensorView& tensor = *it->second;
  if (!std::equal(shape.begin(), shape.end(), tensor.shape.begin(), tensor.shape.end())) {
    return absl::DataLossError(absl::StrCat("tensor ", name, " has shape ", ShapeText(tensor.shape),
                                            ", the config says ", ShapeText(shape)));
  }
  if (tensor.dtype != "F16" && tensor.dtype != "BF16" && tensor.dtype != "F32") {
    return absl::DataLossError(
        absl::StrCat("tensor ", name, " has dtype ", tensor.dtype, ", not F16, BF16 or F32"));
  }
  const int64_t count = tensor.bytes.size() / *ElementBytes(tensor.dtype);
  std::vector<float> values(count);
  constexpr int64_t kChunk = 1 << 18;
  ParallelFor(pool, static_cast<int>((count + kChunk - 1) / kChunk), [&](int chunk) {
    const int64_t first = chunk * kChunk;
    ConvertToFloat(tensor, first, std::min(kChunk, count - first), values.data() + first);
  });
  return values;
}

Digest WeightFiles::ComputeDigest(absl::string_view suffix) const {
  Digest digest;
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> ctx(EVP_MD_CTX_new(),
                                                                    &EVP_MD_CTX_free);
  bool ok = ctx != nullptr && EVP_DigestInit_ex(ctx.get(), EVP_sha256(), nullptr) == 1;
  for (const auto& file : files_) {
    ok = ok && EVP_DigestUpdate(ctx.get(), file->bytes().data(), file->bytes().size()) == 1;
  }
  ok = ok && EVP_DigestUpdate(ctx.get(), suffix.data(), suffix.size()) == 1 &&
       EVP_DigestFinal_ex(ctx.get(), digest.bytes.data(), nullptr) == 1;
  PKV_CHECK(ok, "SHA-256 is not available");
  return digest;
}

}  // namespace pkv
