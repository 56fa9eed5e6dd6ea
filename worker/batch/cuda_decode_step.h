#ifndef PKV_WORKER_BATCH_CUDA_DECODE_STEP_H_
#define PKV_WORKER_BATCH_CUDA_DECODE_STEP_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device/device_buffer.h"
#include "kernels/device/pinned_buffer.h"
#include "kernels/device/stream.h"
#include "pkv/kernels/codec_params.h"
#include "pkv/kernels/decode_attention.h"
#include "worker/batch/cuda_pools.h"
#include "worker/engine/cuda/layer_pass.h"

namespace pkv {

// One sequence of a step.
struct DecodeRow {
  int slot = 0;
  int32_t token = 0;
  int32_t position = 0;       // of the token
  int num_window_tokens = 0;  // before it
  int num_patterns_k = 0, num_patterns_v = 0;
  std::span<const int32_t> pages;  // of its blocks, in order
};

// A decode step of many sequences over the pools: one token each through all layers, its K and V
// appended to its window. Steps of one number of rows replay a CUDA graph from their third on.
//
// Thread-compatible. Several may work at a time on one model and one pools, on different slots.
class CudaDecodeStep {
 public:
  struct Options {
    int max_rows = 0;
    int max_blocks = 0;  // of one sequence
  };
  // `model` and `pools` outlive the step.
  static absl::StatusOr<std::unique_ptr<CudaDecodeStep>> Make(const CudaModel* model,
                                                              CudaPools* pools,
                                                              const CodecParams& params,
                                                              const Options& options);
  ~CudaDecodeStep();

  // Returns when the results are here. `before_layer`, when not null, is called before each layer's
  // work is enqueued on stream(), and may add to it; an error of it ends the step and is returned.
  // REQUIRES: rows.size() <= max_rows.
  //   Internal  the device failed
  absl::Status Run(std::span<const DecodeRow> rows,
                   const std::function<absl::Status(int)>& before_layer);

  // Of the last Run.
  int32_t greedy_token(int row) const { return results()[row]; }
  float greedy_logprob(int row) const;
  // K or V of the row's token was beyond fp16.
  bool not_finite(int row) const { return results()[2 * max_rows_ + row] != 0; }
  // Copies [vocab_size] logits of a row and waits.
  absl::Status CopyLogits(int row, std::span<float> out);

  void* stream() const { return stream_.handle(); }

 private:
  CudaDecodeStep(CudaPools* pools, Stream stream, const Options& options)
      : pools_(*pools),
        stream_(std::move(stream)),
        max_rows_(options.max_rows),
        max_blocks_(options.max_blocks) {}
  absl::Status Allocate(const CudaModel* model, const CodecParams& params);
  absl::Status Upload(std::span<const DecodeRow> rows, int padded);
  absl::Status Enqueue(int rows, const std::function<absl::Status(int)>& before_layer);
  absl::Status Replay(int rows);
  absl::Status Capture(int rows);
  const int32_t* results() const { return reinterpret_cast<const int32_t*>(host_results_.data()); }

  // What a step uploads, as arrays of max_rows.
  enum Table { kTokens, kPositions, kNumBlocks, kNumWindowTokens, kSlots, kNumPatterns };
  static constexpr int kNumTables = 7;  // kNumPatterns has two a row
  int32_t* host_table(int table) {
    return reinterpret_cast<int32_t*>(host_tables_.data()) + int64_t{table} * max_rows_;
  }
  int32_t* table(int table) { return tables_.As<int32_t>() + int64_t{table} * max_rows_; }

  struct Graph {
    int runs = 0;          // so far
    void* exec = nullptr;  // cudaGraphExec_t, once captured
  };

  CudaPools& pools_;
  const Stream stream_;  // outlives the device memory
  const int max_rows_, max_blocks_;
  std::unique_ptr<LayerPass> pass_;
  std::unique_ptr<DecodeAttention> attention_;
  PinnedBuffer host_tables_, host_results_;
  DeviceBuffer tables_;             // tables, then the block tables [max_rows][max_blocks]
  DeviceBuffer token_k_, token_v_;  // [max_rows, num_kv_heads, head_dim] fp16
  DeviceBuffer results_;            // [max_rows] greedy tokens, log probabilities, not_finite
  std::map<int, Graph> graphs_;     // by rows
};

}  // namespace pkv

#endif  // PKV_WORKER_BATCH_CUDA_DECODE_STEP_H_
