#ifndef PKV_WORKER_EVAL_SHARED_TABLE_H_
#define PKV_WORKER_EVAL_SHARED_TABLE_H_

#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "pkv/kernels/codebook.h"
#include "pkv/kernels/codec_params.h"
#include "worker/eval/passages.h"
#include "worker/serve/model_host.h"

namespace pkv {

// K and V, fp16, of the prefixes that a shared table is mined from, one after another.
using CalibrationKv = Fp16Window;

// Prefills the first `prefix_tokens` of every passage with an fp16 cache and keeps every `stride`th
// token from position 64 on. Errors of the model.
absl::StatusOr<CalibrationKv> ComputeCalibrationKv(const ModelHost& host,
                                                   std::span<const Passage> passages,
                                                   int prefix_tokens, int stride);

// One pattern table, [layer], for every prompt: mined as a prompt's would be, from `kv`. `params`
// must have patterns.
absl::StatusOr<std::shared_ptr<const std::vector<Codebook>>> MineSharedTable(
    const CalibrationKv& kv, int num_layers, const CodecParams& params, ThreadPool* pool);

}  // namespace pkv

#endif  // PKV_WORKER_EVAL_SHARED_TABLE_H_
