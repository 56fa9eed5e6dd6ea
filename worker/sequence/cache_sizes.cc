#include "worker/sequence/cache_sizes.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "pkv/block/aligned_buffer.h"
#include "pkv/block/object_header.h"
#include "proto/base/checked_math.h"
#include "proto/base/status_macros.h"
#include "worker/sequence/object_place.h"

namespace pkv {
namespace {

constexpr int kMaxTokens = 1 << 24;

absl::StatusOr<uint64_t> ObjectBytes(const ObjectHeader& header) {
  PKV_ASSIGN_OR_RETURN(const ObjectSizes sizes, ComputeObjectSizes(header));
  return sizes.object_bytes;
}

}  // namespace

uint64_t StoredBytes(uint64_t bytes) { return AlignUp(bytes, kStoreUnitBytes); }

absl::StatusOr<CacheSizes> SizesAfterPrefill(const KvShape& shape, const CodecParams& params,
                                             int num_tokens) {
  PKV_RETURN_IF_ERROR(ValidateShape(shape));
  PKV_RETURN_IF_ERROR(params.Validate(shape));
  if (num_tokens < 1 || num_tokens > kMaxTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokens ", num_tokens, " not in [1, ", kMaxTokens, "]"));
  }
  CacheSizes sizes;
  sizes.num_tokens = num_tokens;
  sizes.num_blocks = BlockTokensAfterPrefill(params, num_tokens) / kBlockTokens;
  sizes.window_tokens = num_tokens - sizes.num_blocks * kBlockTokens;

  const Digest profile;
  ObjectHeader block = HeaderOf(ObjectKind::kBlock, shape, params, profile);
  if (params.encoding.has_patterns) {
    block.num_patterns_k = static_cast<uint16_t>(params.num_patterns_k);
    block.num_patterns_v = static_cast<uint16_t>(params.num_patterns_v);
  }
  block.first_token = kBlockTokens;
  PKV_ASSIGN_OR_RETURN(sizes.block_bytes, ObjectBytes(block));
  if (sizes.num_blocks > 0) {
    ObjectHeader first = block;
    first.first_token = 0;
    if (!params.encoding.is_fp16()) first.num_sinks = static_cast<uint16_t>(params.num_sinks);
    PKV_ASSIGN_OR_RETURN(const uint64_t first_bytes, ObjectBytes(first));
    const auto num_others = static_cast<uint64_t>(sizes.num_blocks - 1);
    sizes.blocks_bytes = first_bytes + num_others * sizes.block_bytes;
    sizes.stored_bytes = StoredBytes(first_bytes) + num_others * StoredBytes(sizes.block_bytes);
    if (params.encoding.has_patterns) {
      ObjectHeader table = HeaderOf(ObjectKind::kTable, shape, params, profile);
      // Not more than there are tokens to mine.
      const int mined_from = num_tokens - params.num_sinks;
      table.num_patterns_k = static_cast<uint16_t>(std::min(params.num_patterns_k, mined_from));
      table.num_patterns_v = static_cast<uint16_t>(std::min(params.num_patterns_v, mined_from));
      PKV_ASSIGN_OR_RETURN(sizes.table_bytes, ObjectBytes(table));
      sizes.stored_bytes += StoredBytes(sizes.table_bytes);
    }
  }
  if (sizes.window_tokens > 0) {
    ObjectHeader window = HeaderOf(ObjectKind::kWindow, shape, params, profile);
    window.num_tokens = static_cast<uint16_t>(sizes.window_tokens);
    window.first_token = uint64_t{kBlockTokens} * static_cast<uint64_t>(sizes.num_blocks);
    PKV_ASSIGN_OR_RETURN(sizes.window_bytes, ObjectBytes(window));
    sizes.stored_bytes += StoredBytes(sizes.window_bytes);
  }
  return sizes;
}

}  // namespace pkv
