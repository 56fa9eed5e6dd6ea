#include "proto/block/payload_layout.h"

#include "pkv/block/aligned_buffer.h"
#include "pkv/block/object_header.h"
#include "proto/base/checked_math.h"

namespace pkv {
namespace {

constexpr int64_t kFloat16Bytes = 2;

// Sections of a head whose K and V stand as fp16 rows of head_dim: fp16 blocks, windows, tables.
void PlaceRows(int64_t k_rows, int64_t v_rows, PayloadLayout& layout) {
  const int64_t row_bytes = layout.head_dim * kFloat16Bytes;
  layout.k_codes = layout.k_fine_codes = 0;
  layout.v_codes = k_rows * row_bytes;
  layout.head_bytes = (k_rows + v_rows) * row_bytes;
  layout.k_scales = layout.k_zeros = layout.v_scales = layout.v_zeros = layout.head_bytes;
  layout.k_ids = layout.v_ids = layout.head_bytes;
}

void PlaceCodes(PayloadLayout& layout) {
  const Encoding& encoding = layout.encoding;
  const int64_t values = int64_t{kBlockTokens} * layout.head_dim;
  const int64_t k_params = layout.k_groups() * layout.head_dim * kFloat16Bytes;
  const int64_t v_params = layout.v_groups() * kBlockTokens * kFloat16Bytes;
  const int64_t ids = encoding.has_patterns ? kBlockTokens : 0;
  int64_t offset = 0;
  const auto place = [&offset](int64_t bytes) {
    const int64_t begin = offset;
    offset += bytes;
    return begin;
  };
  const int64_t fine_values = int64_t{encoding.k_fine_tokens} * layout.head_dim;
  layout.k_codes = place((values - fine_values) * encoding.bits_k / 8);
  layout.k_fine_codes = place(fine_values * kFineBits / 8);
  layout.v_codes = place(values * encoding.bits_v / 8);
  layout.k_scales = place(k_params);
  layout.k_zeros = place(k_params);
  layout.v_scales = place(v_params);
  layout.v_zeros = place(v_params);
  layout.k_ids = place(ids);
  layout.v_ids = place(ids);
  layout.head_bytes = offset;
}

}  // namespace

PayloadLayout PayloadLayout::Of(const ObjectHeader& header) {
  PayloadLayout layout;
  layout.num_kv_heads = header.num_kv_heads;
  layout.head_dim = header.head_dim;
  layout.encoding = header.encoding();
  layout.num_sinks = header.num_sinks;
  if (header.kind == ObjectKind::kTable) {
    PlaceRows(header.num_patterns_k, header.num_patterns_v, layout);
  } else if (header.kind == ObjectKind::kWindow) {
    PlaceRows(header.num_tokens, header.num_tokens, layout);
  } else if (layout.encoding.is_fp16()) {
    PlaceRows(kBlockTokens, kBlockTokens, layout);
  } else {
    PlaceCodes(layout);
  }
  layout.page_bytes = layout.num_kv_heads * layout.head_bytes;

  const int64_t row_bytes = layout.head_dim * kFloat16Bytes;
  layout.sinks = layout.page_bytes;
  layout.sink_head_bytes = 2 * layout.num_sinks * row_bytes;
  layout.appended = layout.sinks + layout.num_kv_heads * layout.sink_head_bytes;
  const int appended_rows =
      ((header.flags & kFlagAppendsK) != 0 ? 1 : 0) + ((header.flags & kFlagAppendsV) != 0 ? 1 : 0);
  layout.appended_head_bytes = appended_rows * row_bytes;
  layout.frame_bytes = static_cast<int64_t>(
      AlignUp(layout.appended + layout.num_kv_heads * layout.appended_head_bytes, kFrameAlignment));
  return layout;
}

PayloadLayout PayloadLayout::OfBlock(const KvShape& shape, const Encoding& encoding) {
  ObjectHeader header;
  header.kind = ObjectKind::kBlock;
  header.set_encoding(encoding);
  header.num_layers = static_cast<uint16_t>(shape.num_layers);
  header.num_kv_heads = static_cast<uint16_t>(shape.num_kv_heads);
  header.head_dim = static_cast<uint16_t>(shape.head_dim);
  header.num_tokens = kBlockTokens;
  return Of(header);
}

}  // namespace pkv
