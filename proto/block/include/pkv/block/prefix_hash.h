#ifndef PKV_BLOCK_PREFIX_HASH_H_
#define PKV_BLOCK_PREFIX_HASH_H_

// Identity of prompts (BLOCK_FORMAT.md, "Identity"; golden vectors in tests/golden).

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "pkv/block/digest.h"
#include "pkv/block/kv_shape.h"

namespace pkv {

// What must be equal for two workers to share KV cache.
struct ModelProfile {
  KvShape shape;
  double rope_theta = 0;
  Digest weights;  // SHA-256 over the weight files, or of a revision name given by the operator
  std::string adapter;  // LoRA or prompt adapter id; empty for the base model

  // SHA-256 of the canonical text: one "key=value\n" a line, key function version and block_tokens
  // included.
  Digest ComputeDigest() const;
};

// Id of the prefix that ends with this block: SHA-256("pkv.prefix.v1\0" || profile || parent || u32
// count || ids). `parent` is zero for the first block. Codec independent. InvalidArgument unless
// `tokens` has 128 ids.
absl::StatusOr<Digest> BlockPrefixId(const Digest& profile, const Digest& parent,
                                     std::span<const int32_t> tokens);

// Ids of all full blocks of `tokens`, in order: floor(tokens / 128) of them.
std::vector<Digest> PrefixIds(const Digest& profile, std::span<const int32_t> tokens);

// Id of the window object that holds `tokens` after the block `parent`: as BlockPrefixId with
// "pkv.tail.v1\0".
Digest TailId(const Digest& profile, const Digest& parent, std::span<const int32_t> tokens);

// Id of a pattern table: SHA-256("pkv.table.v1\0" || profile || u16 layers, kv heads, head_dim,
// patterns k, v || frames).
Digest TableId(const Digest& profile, const KvShape& shape, int num_patterns_k, int num_patterns_v,
               std::span<const std::byte> frames);

}  // namespace pkv

#endif  // PKV_BLOCK_PREFIX_HASH_H_
