#ifndef PKV_KERNELS_CODEC_PARAMS_H_
#define PKV_KERNELS_CODEC_PARAMS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "pkv/block/kv_shape.h"
#include "pkv/block/object_key.h"

namespace pkv {

// How a vector finds its pattern: smallest squared L2 distance, or smallest range max_j - min_j of
// the residual over the channels of the vector (PatternKV's min-max distance).
enum class AssignMetric { kL2, kMinMax };

// When the pattern of a V vector is subtracted: always; when PatternKV's z-test accepts
// (kernels/README.md, "Gate V"); when the decoded error is smaller with it.
enum class Gate { kNone, kZTest, kExactMse };

// kSearch: scale and zero point by the smallest squared error over shrink ratios about the
// mid-range; kNone: min and max.
enum class Clip { kNone, kSearch };

// When tokens leave the fp16 window for a block.
//   kTail     prefill keeps num_tokens mod 128; decode flushes the moment 128 tokens stand in the
//             window (PatternKV, KIVI's K)
//   kRolling  the newest `recent_tokens` always stay fp16; 128 tokens that have all left them
//             become a block
enum class WindowRule { kTail, kRolling };

// Everything that decides the bytes of a block, besides its K and V. Plain data: change fields,
// then Validate().
struct CodecParams {
  std::string name = "fp16";  // variant name, 1..15 of [a-z0-9_-]
  Encoding encoding;
  // Mined at prefill, per (layer, kv head); 0..255. Both 0: no pattern ids.
  int num_patterns_k = 0;
  int num_patterns_v = 0;
  int kmeans_iterations = 30;  // Lloyd iterations at most
  // Stop when no coordinate of a layer's centroids moved further; from iteration 2 on.
  double kmeans_tolerance = 1e-4;
  AssignMetric assign_k_prefill = AssignMetric::kL2;
  AssignMetric assign_v_prefill = AssignMetric::kL2;
  AssignMetric assign_k_decode = AssignMetric::kMinMax;
  AssignMetric assign_v_decode = AssignMetric::kMinMax;
  Gate gate_v = Gate::kNone;
  double gate_alpha = 0.05;  // z-test significance
  Clip clip_k = Clip::kNone;
  double clip_k_floor = 0.8;  // narrowest range the K search tries, 0.4..1.0 in steps of 0.1
  Clip clip_v = Clip::kNone;
  // Scale and zero point of a group are corrected so that decoding keeps its gain and mean
  // (kernels/README.md, "Correct the gain").
  bool unbiased_k = false;
  bool unbiased_v = false;
  // K channels are coded by runs of eight, making up for the errors of the runs before as the
  // queries seen so far weigh them (key_feedback.h); needs query statistics while encoding.
  bool feedback_k = false;
  double feedback_damping = 0.01;  // share of the mean of the moment's diagonal added to it
  // A block flushed while decoding adds the per-channel midrange of its K (V) to the bank.
  bool append_k = false;
  bool append_v = false;
  int num_sinks = 0;  // tokens [0, num_sinks) stay fp16; 0, 4, 16, 64
  WindowRule window_rule = WindowRule::kTail;
  int recent_tokens = 0;  // kRolling: 0..1024

  // InvalidArgument names the field, its value and what is allowed. head_dim is checked with the
  // shape.
  absl::Status Validate(const KvShape& shape) const;
  // First 8 bytes, little endian, of the SHA-256 of all fields but the name, as canonical
  // "key=value\n" lines.
  uint64_t Digest() const;
  Variant variant() const { return {name, Digest()}; }
};

// Presets (kernels/README.md has the table): fp16; kivi2, kivi4 (groups of 128), kivi2-g64,
// kivi2-g32, kivi4-g64, kivi4-g32 (parity_kivi); pkv2, pkv4 (parity_patternkv); default,
// default4 (ours, 2 and 4 bit). The shape decides the V groups: min(group, head_dim) channels.
//   NotFound         no such preset; lists the names
//   InvalidArgument  the shape is invalid
absl::StatusOr<CodecParams> PresetByName(absl::string_view name, const KvShape& shape);
std::vector<std::string> PresetNames();

// Tokens that stand in blocks when a prefill of `num_tokens` ends, a multiple of 128.
int BlockTokensAfterPrefill(const CodecParams& params, int num_tokens);
// Tokens that should stand in blocks once `num_tokens` are cached and `in_blocks` already do, after
// a decode step. At most one block is added a step: the result is in_blocks or in_blocks + 128.
int BlockTokensAfterDecodeStep(const CodecParams& params, int num_tokens, int in_blocks);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_PARAMS_H_
