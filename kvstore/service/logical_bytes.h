#ifndef PKV_KVSTORE_SERVICE_LOGICAL_BYTES_H_
#define PKV_KVSTORE_SERVICE_LOGICAL_BYTES_H_

#include <cstdint>

#include "pkv/block/object_header.h"

namespace pkv {

// Bytes of one layer frame's tokens as fp16: K and V, two bytes each. 0 for a pattern table, which
// holds no tokens.
inline uint64_t LogicalFrameBytes(const ObjectHeader& header) {
  return uint64_t{header.num_tokens} * header.num_kv_heads * header.head_dim * 2 * 2;
}

}  // namespace pkv

#endif  // PKV_KVSTORE_SERVICE_LOGICAL_BYTES_H_
