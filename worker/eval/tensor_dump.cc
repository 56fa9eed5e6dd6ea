#include "worker/eval/tensor_dump.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/engine/safetensors_writer.h"

namespace pkv {

absl::Status DumpTensors(const ReferenceRun& run, const KvShape& shape,
                         const std::map<std::string, std::string>& metadata,
                         const std::string& path) {
  // Rows without the gaps that the window keeps between heads; they outlive the views below.
  std::vector<std::vector<uint16_t>> packed;
  packed.reserve(size_t{2} * shape.num_layers);
  std::vector<TensorToWrite> tensors;
  const auto add = [&](const std::string& name, std::vector<int64_t> dimensions,
                       std::span<const uint16_t> values) {
    tensors.push_back({name, "F16", std::move(dimensions), std::as_bytes(values)});
  };
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    const std::string prefix = absl::StrCat("layers.", layer, ".");
    const KvTensorView kv = run.kv.layer(layer);
    const int64_t head_elements = int64_t{kv.num_tokens} * kv.head_dim;
    for (const bool is_k : {true, false}) {
      std::vector<uint16_t>& values = packed.emplace_back();
      for (int h = 0; h < kv.num_kv_heads; ++h) {
        const uint16_t* rows = is_k ? kv.k_row(h, 0) : kv.v_row(h, 0);
        values.insert(values.end(), rows, rows + head_elements);
      }
      add(absl::StrCat(prefix, is_k ? "k" : "v"), {kv.num_kv_heads, kv.num_tokens, kv.head_dim},
          values);
    }
    const std::pair<const char*, const CapturedQueries&> queries[] = {
        {"q_prefix", run.prefix_queries}, {"q", run.scored_queries}};
    for (const auto& [name, captured] : queries) {
      add(prefix + name, {captured.num_tokens(layer), captured.num_qo_heads(), kv.head_dim},
          captured.layer(layer));
    }
  }
  return WriteSafetensors(path, tensors, metadata);
}

}  // namespace pkv
