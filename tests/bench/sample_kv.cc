#include "tests/bench/sample_kv.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "pkv/kernels/pattern_miner.h"
#include "pkv/kernels/rotation.h"
#include "proto/base/float16.h"
#include "proto/base/status_macros.h"
#include "worker/engine/safetensors.h"

namespace pkv {
namespace {

constexpr int kRandomQueries = 16;
constexpr int kMiningTokens = 4096;  // about a prompt's; more only lengthens the start
constexpr int kFirstBlocks = 8;      // distinct blocks 0; requests share them
constexpr double kLoudChannels = 8;  // width of every 16th K channel, as in tensor_gen.h

// [rows][columns][head_dim] fp16 of a dump.
struct DumpedTensor {
  std::vector<uint16_t> values;
  int rows = 0, columns = 0, head_dim = 0;

  const uint16_t* row(int r, int c) const {
    return values.data() + (int64_t{r} * columns + c) * head_dim;
  }
};

absl::StatusOr<DumpedTensor> ReadTensor(const SafetensorsFile& file, const std::string& name) {
  const auto found = file.tensors().find(name);
  if (found == file.tensors().end() || found->second.dtype != "F16" ||
      found->second.shape.size() != 3) {
    return absl::InvalidArgumentError(absl::StrCat("no F16 tensor ", name, " of three dimensions"));
  }
  const TensorView& view = found->second;
  DumpedTensor tensor;
  tensor.values.resize(view.bytes.size() / sizeof(uint16_t));
  std::memcpy(tensor.values.data(), view.bytes.data(), view.bytes.size());
  tensor.rows = static_cast<int>(view.shape[0]);
  tensor.columns = static_cast<int>(view.shape[1]);
  tensor.head_dim = static_cast<int>(view.shape[2]);
  return tensor;
}

struct DumpedLayer {
  DumpedTensor k, v;  // [kv_head][token][head_dim]
  DumpedTensor q;     // [token][qo_head][head_dim]
};

absl::StatusOr<std::vector<DumpedLayer>> ReadLayers(const std::string& path) {
  PKV_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(path));
  std::vector<DumpedLayer> layers;
  do {
    const std::string prefix = absl::StrCat("layers.", layers.size(), ".");
    DumpedLayer layer;
    PKV_ASSIGN_OR_RETURN(layer.k, ReadTensor(*file, prefix + "k"));
    PKV_ASSIGN_OR_RETURN(layer.v, ReadTensor(*file, prefix + "v"));
    PKV_ASSIGN_OR_RETURN(layer.q, ReadTensor(*file, prefix + "q"));
    const DumpedTensor& first = layers.empty() ? layer.k : layers[0].k;
    for (const DumpedTensor* tensor : {&layer.k, &layer.v}) {
      if (tensor->values.size() != first.values.size() || tensor->rows != first.rows ||
          tensor->head_dim != first.head_dim) {
        return absl::InvalidArgumentError(absl::StrCat(prefix, "k and v differ from layers.0.k"));
      }
    }
    if (layer.q.rows < 1 || layer.q.head_dim != first.head_dim || first.rows < 1 ||
        layer.q.columns % first.rows != 0 || layer.q.columns < first.rows) {
      return absl::InvalidArgumentError(absl::StrCat(prefix, "q does not fit ", prefix, "k"));
    }
    layers.push_back(std::move(layer));
  } while (file->tensors().contains(absl::StrCat("layers.", layers.size(), ".k")));
  if (layers[0].k.columns < kBlockTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has ", layers[0].k.columns, " tokens, needed are ", kBlockTokens));
  }
  return layers;
}

// Where the channels of one piece of a benched kv head come from.
struct SourceHead {
  int layer = 0, kv_head = 0;
  int channel = 0;  // first one taken
};

// Heads of a dump cut, or joined, to the width of the benched ones.
class HeadMap {
 public:
  HeadMap(const std::vector<DumpedLayer>& layers, int head_dim)
      : heads_(layers[0].k.rows),
        num_sources_(static_cast<int>(layers.size()) * heads_),
        dumped_dim_(layers[0].k.head_dim),
        head_dim_(head_dim) {}

  int piece_dim() const { return std::min(dumped_dim_, head_dim_); }
  int pieces() const { return head_dim_ / piece_dim(); }
  SourceHead At(int kv_head, int piece) const {
    const int index = kv_head * pieces() + piece;
    const int parts = dumped_dim_ / piece_dim();
    const int source = index % num_sources_;
    return {source / heads_, source % heads_, index / num_sources_ % parts * piece_dim()};
  }
  std::string Describe() const {
    const std::string real = absl::StrCat(num_sources_, " real (layer, kv head) of ", dumped_dim_);
    if (dumped_dim_ == head_dim_) return absl::StrCat(real, " channels, in turn");
    if (dumped_dim_ > head_dim_) return absl::StrCat(real, " channels, cut to ", head_dim_);
    return absl::StrCat(real, " channels, ", pieces(), " side by side");
  }

 private:
  int heads_, num_sources_, dumped_dim_, head_dim_;
};

void CopyKv(const std::vector<DumpedLayer>& layers, const HeadMap& map, TestTensor& out) {
  const MutableKvTensorView view = out.view();
  for (int h = 0; h < out.num_kv_heads; ++h) {
    for (int piece = 0; piece < map.pieces(); ++piece) {
      const SourceHead source = map.At(h, piece);
      const DumpedLayer& layer = layers[source.layer];
      for (int t = 0; t < out.num_tokens; ++t) {
        const int64_t to =
            h * view.head_stride + int64_t{t} * out.head_dim + piece * map.piece_dim();
        const uint16_t* k = layer.k.row(source.kv_head, t) + source.channel;
        const uint16_t* v = layer.v.row(source.kv_head, t) + source.channel;
        std::copy(k, k + map.piece_dim(), view.k + to);
        std::copy(v, v + map.piece_dim(), view.v + to);
      }
    }
  }
}

void CopyQueries(const std::vector<DumpedLayer>& layers, const HeadMap& map,
                 const AttentionCase& shape, SampleKv& sample) {
  const int dumped_heads = layers[0].q.columns / layers[0].k.rows;
  float* to = sample.queries.data();
  for (int index = 0; index < sample.num_queries; ++index) {
    for (int h = 0; h < shape.num_qo_heads; ++h) {
      const int group_head = h % shape.heads_per_kv();
      for (int piece = 0; piece < map.pieces(); ++piece) {
        const SourceHead source = map.At(h / shape.heads_per_kv(), piece);
        const DumpedTensor& q = layers[source.layer].q;
        const int token = (index + group_head / dumped_heads) % q.rows;
        const int head = source.kv_head * dumped_heads + group_head % dumped_heads;
        const uint16_t* from = q.row(token, head) + source.channel;
        to = std::transform(from, from + map.piece_dim(), to, Float16ToFloat);
      }
    }
  }
}

EncodedBlock EncodeOne(const SampleKv& sample, const CodecParams& params, const Codebook& bank,
                       int block, int index) {
  const KvShape shape = {1, sample.kv.num_kv_heads, sample.kv.head_dim};
  const KvTensorView all = sample.kv.view();
  const KvTensorView tokens = all.Tokens(block * kBlockTokens, kBlockTokens);
  return EncodeBlock(shape, params, tokens, bank, Phase::kPrefill, index);
}

}  // namespace

SampleKv RandomSampleKv(const AttentionCase& shape, int num_blocks, ThreadPool* pool) {
  const int num_tokens = num_blocks * kBlockTokens;
  SampleKv sample{.kv = TestTensor(shape.num_kv_heads, num_tokens, shape.head_dim)};
  const int64_t stride = int64_t{num_tokens} * shape.head_dim;
  ParallelFor(pool, 2 * shape.num_kv_heads, [&](int i) {
    TestRandom random(static_cast<uint64_t>(i) + 1);
    const bool is_k = i % 2 == 0;
    uint16_t* rows = (is_k ? sample.kv.k : sample.kv.v).data() + i / 2 * stride;
    FillHead(random, num_tokens, shape.head_dim, is_k ? kLoudChannels : 1.0, rows);
  });
  sample.num_queries = kRandomQueries;
  sample.num_qo_heads = shape.num_qo_heads;
  sample.queries.resize(size_t{kRandomQueries} * shape.num_qo_heads * shape.head_dim);
  TestRandom random(0);
  for (float& q : sample.queries) q = static_cast<float>(random.Normal());
  sample.description = absl::StrCat("random clusters, ", num_blocks, " distinct blocks");
  return sample;
}

absl::StatusOr<SampleKv> DumpedSampleKv(const std::string& path, const AttentionCase& shape) {
  PKV_ASSIGN_OR_RETURN(const std::vector<DumpedLayer> layers, ReadLayers(path));
  const int dumped_dim = layers[0].k.head_dim;
  if (dumped_dim % shape.head_dim != 0 && shape.head_dim % dumped_dim != 0) {
    return absl::InvalidArgumentError(absl::StrCat("head_dim ", shape.head_dim, " and the ",
                                                   dumped_dim, " of ", path,
                                                   ": one must be a multiple of the other"));
  }
  const HeadMap map(layers, shape.head_dim);
  const int num_blocks = layers[0].k.columns / kBlockTokens;
  SampleKv sample{.kv = TestTensor(shape.num_kv_heads, num_blocks * kBlockTokens, shape.head_dim)};
  CopyKv(layers, map, sample.kv);
  sample.num_queries = layers[0].q.rows;
  sample.num_qo_heads = shape.num_qo_heads;
  sample.queries.resize(size_t(sample.num_queries) * shape.num_qo_heads * shape.head_dim);
  CopyQueries(layers, map, shape, sample);
  sample.description = absl::StrCat("real K, V and queries of ", path, ": ", map.Describe(), "; ",
                                    num_blocks, " distinct blocks, repeated");
  return sample;
}

absl::StatusOr<EncodedSample> EncodeSample(const SampleKv& sample, absl::string_view preset,
                                           ThreadPool* pool) {
  const KvShape shape = {1, sample.kv.num_kv_heads, sample.kv.head_dim};
  EncodedSample result;
  PKV_ASSIGN_OR_RETURN(result.params, PresetByName(preset, shape));
  result.page = PayloadLayout::OfBlock(shape, result.params.encoding);
  // Rotated presets encode rotated rows: the patterns are of those too.
  SampleKv rows{.kv = sample.kv};
  const Encoding& encoding = result.params.encoding;
  if (encoding.rotated) {
    const int64_t num_rows = int64_t{rows.kv.num_kv_heads} * rows.kv.num_tokens;
    ParallelFor(pool, 2, [&](int is_v) {
      std::vector<uint16_t>& values = is_v ? rows.kv.v : rows.kv.k;
      RotateFloat16Rows(values.data(), num_rows, shape.head_dim, values.data());
    });
  }
  const KvTensorView all = std::as_const(rows.kv).view();
  if (encoding.has_patterns) {
    const int num_tokens = std::min(kMiningTokens, all.num_tokens);
    PKV_ASSIGN_OR_RETURN(result.bank, MinePatterns(all.Tokens(0, num_tokens), result.params,
                                                   {.device = Device::kCpu, .pool = pool}));
  }
  const int num_blocks = rows.num_blocks();
  const int num_first = result.params.num_sinks > 0 ? std::min(kFirstBlocks, num_blocks) : 0;
  result.first.resize(num_first);
  result.rest.resize(num_blocks);
  ParallelFor(pool, num_first + num_blocks, [&](int i) {
    EncodedBlock& block = i < num_first ? result.first[i] : result.rest[i - num_first];
    const int from = i < num_first ? i : i - num_first;
    block = EncodeOne(rows, result.params, result.bank, from, i < num_first ? 0 : 1);
  });
  return result;
}

}  // namespace pkv
