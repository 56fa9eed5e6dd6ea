#ifndef PKV_TESTS_BENCH_SAMPLE_KV_H_
#define PKV_TESTS_BENCH_SAMPLE_KV_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "pkv/block/aligned_buffer.h"
#include "pkv/kernels/codebook.h"
#include "proto/base/thread_pool.h"
#include "proto/block/payload_layout.h"
#include "tests/bench/attention_case.h"
#include "tests/support/block_fixture.h"
#include "tests/support/tensor_gen.h"

namespace pkv {

// K and V of one layer, and queries that read them: what a measurement encodes and attends to.
struct SampleKv {
  TestTensor kv;
  int num_queries = 0;
  int num_qo_heads = 0;
  std::vector<float> queries = {};  // [num_queries][num_qo_heads][head_dim]
  std::string description = {};     // where it comes from, and how it was fitted to the shape

  // Of request `index`; they repeat.
  const float* query(int index, int qo_head) const {
    const int64_t row = int64_t{index % num_queries} * num_qo_heads + qo_head;
    return queries.data() + row * kv.head_dim;
  }
  int num_blocks() const { return kv.num_tokens / kBlockTokens; }
};

// Clustered rows with loud K channels (tensor_gen.h), and normal queries.
SampleKv RandomSampleKv(const AttentionCase& shape, int num_blocks, ThreadPool* pool);

// K, V and queries of a model, as `pkvctl eval --dump` writes them (worker/eval/tensor_dump.h), put
// into `shape`: kv head h is the h-th (layer, kv head) of the file, from the first again when they
// run out; a smaller head_dim takes one part of its channels after another, a larger one puts heads
// side by side. A kv head's query heads are its own; more than it has are those of other tokens.
//   NotFound, DataLoss  as SafetensorsFile::Open
//   InvalidArgument     not such a dump, or less than one block of tokens
absl::StatusOr<SampleKv> DumpedSampleKv(const std::string& path, const AttentionCase& shape);

// A sample in the blocks of one preset.
struct EncodedSample {
  CodecParams params;
  PayloadLayout page;               // of a block without sinks
  Codebook bank;                    // of every block
  std::vector<EncodedBlock> first;  // blocks 0, with sinks; none for presets without
  std::vector<EncodedBlock> rest;
};
// Patterns are mined from the first tokens of the sample. K is rounded channel by channel, without
// the feedback of queries: it costs no reader anything.
//   NotFound, InvalidArgument  as PresetByName
absl::StatusOr<EncodedSample> EncodeSample(const SampleKv& sample, absl::string_view preset,
                                           ThreadPool* pool);

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_SAMPLE_KV_H_
