#ifndef PKV_WORKER_PREFILL_ERROR_SAMPLE_H_
#define PKV_WORKER_PREFILL_ERROR_SAMPLE_H_

#include <optional>

#include "absl/status/statusor.h"
#include "worker/sequence/kv_buffer.h"
#include "worker/sequence/kv_sequence.h"

namespace pkv {

// Norm of the error over the norm, of K and of V in one layer of one block; 0 when both are zeros.
struct RelativeError {
  double k = 0, v = 0;
};

// Compares one layer of one block with what it was made from: cheap enough to do for every prompt,
// and the only sight of what compression costs on real traffic. Thread-compatible.
class ErrorSample {
 public:
  // Copies K and V of the first started block of `sequence`, before FinishBlocks takes them out of
  // the window. Nothing when they never stood there: they were computed on a GPU, or no block was
  // started.
  static std::optional<ErrorSample> Take(const KvSequence& sequence, int layer);

  // After FinishBlocks. Errors as KvSequence::DecodeBlock.
  absl::StatusOr<RelativeError> Measure(KvSequence& sequence);

 private:
  ErrorSample(const KvTensorView& exact, int block_index, int layer);

  int block_index_, layer_;
  KvBuffer exact_;
};

}  // namespace pkv

#endif  // PKV_WORKER_PREFILL_ERROR_SAMPLE_H_
