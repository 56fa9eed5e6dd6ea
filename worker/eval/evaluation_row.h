#ifndef PKV_WORKER_EVAL_EVALUATION_ROW_H_
#define PKV_WORKER_EVAL_EVALUATION_ROW_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "pkv/kernels/codebook.h"
#include "pkv/kernels/codec_params.h"

namespace pkv {

// What one row of an evaluation is about: a preset, or one with some of its fields changed.
struct EvaluationRow {
  std::string label;  // "default", "default clip_v=none num_patterns_k=64"
  CodecParams params;
  // [layer]: one pattern table for all passages; null: each passage mines its own.
  std::shared_ptr<const std::vector<Codebook>> shared_patterns;
};

// Reads "PRESET" or "PRESET:key=value[,key=value...]"; ';' separates like ','. Keys and values are
// those of SetCodecParam.
//   NotFound         no such preset or key; lists them
//   InvalidArgument  no key=value, a value its field does not take, or fields that do not fit
//                    together or the shape
absl::StatusOr<EvaluationRow> ParseEvaluationRow(absl::string_view text, const KvShape& shape);

}  // namespace pkv

#endif  // PKV_WORKER_EVAL_EVALUATION_ROW_H_
