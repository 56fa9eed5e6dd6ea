#ifndef PKV_BLOCK_KV_SHAPE_H_
#define PKV_BLOCK_KV_SHAPE_H_

#include <cstdint>

#include "absl/status/status.h"

namespace pkv {

// Tokens in one block. Block k of a sequence holds tokens [128 k, 128 (k + 1)), whatever the
// encoding.
inline constexpr int kBlockTokens = 128;

// Limits of the format. A header beyond them is refused before any size is computed from it.
inline constexpr int kMaxLayers = 1024;
inline constexpr int kMaxKvHeads = 256;
inline constexpr int kMaxPatterns = 255;  // ids 0..254; id 255 means "raw"
inline constexpr int kMaxWindowTokens = 4096;
inline constexpr int kMaxSinks = 64;
// Positions fit in 31 bits, the last window's end included.
inline constexpr uint64_t kMaxFirstToken = (uint64_t{1} << 31) - 2 * kMaxWindowTokens;

// K of the tokens in the last slots of a block, one row tile, may have codes of kFineBits.
inline constexpr int kFineTokens = 16;
inline constexpr int kFineBits = 4;

// A pattern id that names no pattern: the raw vector was quantized.
inline constexpr uint8_t kRawPatternId = 255;

// The part of a model that decides the size of its KV cache.
struct KvShape {
  int num_layers = 0;
  int num_kv_heads = 0;
  int head_dim = 0;  // 64 or 128

  friend bool operator==(const KvShape&, const KvShape&) = default;
};

// How the payload of a block is laid out. Not how it was computed: that is the variant's params
// digest.
struct Encoding {
  int bits_k = 16;         // 16 (fp16), 4 or 2 bits a code
  int bits_v = 16;         // 16 exactly when bits_k is
  int k_group_tokens = 0;  // tokens sharing one K scale per channel: 32, 64, 128; 0 for fp16
  // Channels sharing one V scale per token: 32, 64, 128, at most head_dim; 0 for fp16.
  int v_group_channels = 0;
  bool has_patterns = false;  // pattern ids are stored; false for fp16
  // Slots at the end of a block whose K has codes of kFineBits on a finer grid: 0 or, with 2-bit K,
  // kFineTokens.
  int k_fine_tokens = 0;
  bool rotated = false;  // K and V stand rotated by a Hadamard matrix; false for fp16

  bool is_fp16() const { return bits_k == 16; }
  friend bool operator==(const Encoding&, const Encoding&) = default;
};

// InvalidArgument names the field, its value and what is allowed.
absl::Status ValidateShape(const KvShape& shape);
absl::Status ValidateEncoding(const KvShape& shape, const Encoding& encoding);

}  // namespace pkv

#endif  // PKV_BLOCK_KV_SHAPE_H_
