#ifndef PKV_WORKER_SEQUENCE_CACHE_SIZES_H_
#define PKV_WORKER_SEQUENCE_CACHE_SIZES_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "pkv/kernels/codec_params.h"

namespace pkv {

// pkvd keeps an object in whole units of this (kArenaUnitBytes of kvstore/store/slab_arena.h).
inline constexpr uint64_t kStoreUnitBytes = 4096;

// What one prompt's cache takes, in the objects that a prefill makes of it. Bytes are those of
// whole objects, headers and checksums included.
struct CacheSizes {
  int num_tokens = 0;
  int num_blocks = 0;
  int window_tokens = 0;     // fp16, behind the blocks
  uint64_t block_bytes = 0;  // of a block that is not the first
  uint64_t blocks_bytes = 0;
  uint64_t table_bytes = 0;   // 0 without patterns
  uint64_t window_bytes = 0;  // 0 without a window
  uint64_t stored_bytes = 0;  // all of them, as pkvd keeps them

  uint64_t total_bytes() const { return blocks_bytes + table_bytes + window_bytes; }
};

// `bytes` of one object, as pkvd keeps them.
uint64_t StoredBytes(uint64_t bytes);

// After a prefill of `num_tokens` whose prefix was not stored.
//   InvalidArgument  a shape or params out of their limits, num_tokens not in [1, 2^24], or a
//   window
//                    that is too large for an object
absl::StatusOr<CacheSizes> SizesAfterPrefill(const KvShape& shape, const CodecParams& params,
                                             int num_tokens);

}  // namespace pkv

#endif  // PKV_WORKER_SEQUENCE_CACHE_SIZES_H_
