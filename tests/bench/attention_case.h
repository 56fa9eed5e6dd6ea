#ifndef PKV_TESTS_BENCH_ATTENTION_CASE_H_
#define PKV_TESTS_BENCH_ATTENTION_CASE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "pkv/kernels/codec_params.h"

namespace pkv {

// One decode step to time: how many requests of what length, and the shape of their heads.
struct AttentionCase {
  int batch = 1;
  int context_tokens = 0;  // of a request, the token that queries included; the mean when mixed
  bool mixed = false;      // lengths spread evenly over 1..2 * context_tokens
  int num_qo_heads = 32;
  int num_kv_heads = 8;
  int head_dim = 128;

  int heads_per_kv() const { return num_qo_heads / num_kv_heads; }
  KvShape kv_shape() const { return {1, num_kv_heads, head_dim}; }
  // "8x32k", "8x32k,q=64,d=64,mixed": what differs from the defaults; ParseAttentionCase reads it.
  std::string Name() const;
  friend bool operator==(const AttentionCase&, const AttentionCase&) = default;
};

// BATCHxCONTEXT[,q=HEADS][,kv=HEADS][,d=HEAD_DIM][,mixed]; CONTEXT in tokens, or with k in 1024.
//   InvalidArgument  names the part that is wrong, and what is allowed
absl::StatusOr<AttentionCase> ParseAttentionCase(absl::string_view text);

// The table of batch x context that every measurement covers, and the other shapes: 64 query heads,
// head_dim 64, mixed lengths.
std::vector<AttentionCase> DefaultAttentionCases();
std::vector<AttentionCase> ExtraAttentionCases();

// Tokens of one request. Its window holds the token that queries, as the last.
struct RequestLength {
  int num_blocks = 0;
  int num_window_tokens = 0;
};
// A request fills its window first; what is left becomes blocks, rounded to whole ones.
std::vector<RequestLength> PlanLengths(const AttentionCase& attention_case, int window_tokens,
                                       uint64_t seed);

// Bytes that one launch cannot do without, each counted once.
struct LaunchBytes {
  int64_t blocks = 0;
  int64_t windows = 0;  // fp16 tokens of the windows, the querying token included
  int64_t sinks = 0;    // fp16 tokens of the first blocks
  int64_t banks = 0;    // patterns
  int64_t queries = 0;  // q, out, and the token's row written to its window

  // The cached tokens: what throughput is counted in.
  int64_t own() const { return blocks + windows + sinks; }
};
LaunchBytes CountLaunchBytes(const AttentionCase& attention_case, const CodecParams& params,
                             const std::vector<RequestLength>& lengths);

// Products and sums: 2 for a score and 2 for a value, per query head, token and channel.
double CountOperations(const AttentionCase& attention_case,
                       const std::vector<RequestLength>& lengths);

// Copies of all buffers that successive launches take in turn, so that between two uses of a byte
// at least 300 MB and twice the L2 cache are read.
int PlanCopies(int64_t launch_bytes, int64_t l2_bytes);

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_ATTENTION_CASE_H_
