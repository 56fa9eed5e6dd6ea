#ifndef PKV_KERNELS_CODEC_HEAD_SOURCE_H_
#define PKV_KERNELS_CODEC_HEAD_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/codec/float16_rows.h"
#include "pkv/block/object_header.h"

namespace pkv {

// K or V of one kv head on its way into a frame.
struct HeadSource {
  const uint16_t* rows;  // [128][head_dim] fp16
  int head_dim;
  int first_token;                     // tokens before it are sinks
  std::span<const uint16_t> patterns;  // empty without patterns
  const uint8_t* ids = nullptr;        // [128]; null without patterns

  // The token's vector less its pattern, in fp32.
  void Residual(int token, float* out) const {
    const uint16_t* row = rows + static_cast<int64_t>(token) * head_dim;
    if (ids == nullptr || ids[token] == kRawPatternId) {
      ConvertToFloat(row, head_dim, out);
    } else {
      Subtract(row, patterns.data() + static_cast<size_t>(ids[token]) * head_dim, head_dim, out);
    }
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_HEAD_SOURCE_H_
