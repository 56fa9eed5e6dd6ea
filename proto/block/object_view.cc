#include "pkv/block/object_view.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "pkv/block/prefix_hash.h"
#include "proto/base/checksum.h"
#include "proto/base/float16.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/block/payload_layout.h"

namespace pkv {
namespace {

constexpr Float16Bits kFloat16Infinity = 0x7c00;
constexpr Float16Bits kFloat16SmallestNormal = 0x0400;

Float16Bits LoadFloat16(std::span<const std::byte> values, size_t index) {
  Float16Bits h;
  std::memcpy(&h, values.data() + index * sizeof(h), sizeof(h));
  return h;
}

bool IsStoredScale(Float16Bits h) {
  return h == 0 || (h >= kFloat16SmallestNormal && h < kFloat16Infinity);
}

// Where in a frame a number stands, for the message.
struct Place {
  int layer;
  int kv_head;
  const char* what;
};

absl::Status BadNumber(const Place& place, size_t index, absl::string_view value,
                       absl::string_view rule) {
  return absl::DataLossError(absl::StrCat("layer ", place.layer, " kv head ", place.kv_head, " ",
                                          place.what, "[", index, "] is ", value, ", ", rule));
}

// Each section is first scanned without a branch, which compilers vectorize, and searched only when
// something is wrong. What is collected is as wide as what is scanned: wider, every vector would be
// unpacked.
template <typename IsGood>
absl::Status CheckFloat16(std::span<const std::byte> values, const Place& place, IsGood is_good,
                          absl::string_view rule) {
  const size_t count = values.size() / sizeof(Float16Bits);
  uint16_t bad = 0;
  for (size_t i = 0; i < count; ++i) {
    bad = static_cast<uint16_t>(bad | (is_good(LoadFloat16(values, i)) ? 0 : 1));
  }
  if (bad == 0) return absl::OkStatus();
  for (size_t i = 0; i < count; ++i) {
    const Float16Bits h = LoadFloat16(values, i);
    if (!is_good(h)) return BadNumber(place, i, absl::StrCat(Float16ToFloat(h)), rule);
  }
  return absl::OkStatus();
}

absl::Status CheckFinite(std::span<const std::byte> values, const Place& place) {
  return CheckFloat16(
      values, place, [](Float16Bits h) { return IsFiniteFloat16(h); }, "not finite");
}

absl::Status CheckScales(std::span<const std::byte> values, const Place& place) {
  return CheckFloat16(
      values, place, [](Float16Bits h) { return IsStoredScale(h); }, "not 0 or in 2^-14..65504");
}

absl::Status CheckIds(std::span<const std::byte> ids, int bank_size, const Place& place) {
  const auto is_good = [bank_size](std::byte id) {
    const int value = std::to_integer<int>(id);
    return value < bank_size || value == kRawPatternId;
  };
  uint8_t bad = 0;
  for (const std::byte id : ids) bad = static_cast<uint8_t>(bad | (is_good(id) ? 0 : 1));
  if (bad == 0) return absl::OkStatus();
  const size_t index =
      static_cast<size_t>(std::find_if_not(ids.begin(), ids.end(), is_good) - ids.begin());
  return BadNumber(place, index, absl::StrCat(std::to_integer<int>(ids[index])),
                   absl::StrCat("not below the bank size ", bank_size, " nor 255"));
}

// Scales, zero points and pattern ids of one head of a quantized block.
absl::Status CheckCodeParams(const ObjectHeader& header, const PayloadLayout& layout, int layer,
                             int kv_head, std::span<const std::byte> head) {
  const auto section = [&head](int64_t begin, int64_t end) {
    return head.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  };
  PKV_RETURN_IF_ERROR(
      CheckScales(section(layout.k_scales, layout.k_zeros), {layer, kv_head, "K scale"}));
  PKV_RETURN_IF_ERROR(
      CheckFinite(section(layout.k_zeros, layout.v_scales), {layer, kv_head, "K zero point"}));
  PKV_RETURN_IF_ERROR(
      CheckScales(section(layout.v_scales, layout.v_zeros), {layer, kv_head, "V scale"}));
  PKV_RETURN_IF_ERROR(
      CheckFinite(section(layout.v_zeros, layout.k_ids), {layer, kv_head, "V zero point"}));
  const int bank_k = header.num_patterns_k + ((header.flags & kFlagAppendsK) != 0 ? 1 : 0);
  const int bank_v = header.num_patterns_v + ((header.flags & kFlagAppendsV) != 0 ? 1 : 0);
  PKV_RETURN_IF_ERROR(
      CheckIds(section(layout.k_ids, layout.v_ids), bank_k, {layer, kv_head, "K pattern id"}));
  return CheckIds(section(layout.v_ids, layout.head_bytes), bank_v,
                  {layer, kv_head, "V pattern id"});
}

// Checks that each head's part of a section of fp16 rows is finite.
absl::Status CheckRowSection(std::span<const std::byte> frame, int64_t offset, int64_t head_bytes,
                             int num_kv_heads, int layer, const char* what) {
  for (int kv_head = 0; kv_head < num_kv_heads; ++kv_head) {
    const auto begin = static_cast<size_t>(offset + kv_head * head_bytes);
    PKV_RETURN_IF_ERROR(
        CheckFinite(frame.subspan(begin, static_cast<size_t>(head_bytes)), {layer, kv_head, what}));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<uint32_t>> ParseFrameTable(std::span<const std::byte> bytes,
                                                      int num_layers) {
  const size_t crcs_bytes = sizeof(uint32_t) * static_cast<size_t>(num_layers);
  const size_t table_bytes = crcs_bytes + sizeof(uint32_t);
  if (bytes.size() < table_bytes) {
    return absl::DataLossError(absl::StrCat("frame table of ", num_layers, " layers has ",
                                            bytes.size(), " bytes, not ", table_bytes));
  }
  uint32_t stored;
  std::memcpy(&stored, bytes.data() + crcs_bytes, sizeof(stored));
  const uint32_t computed = Crc32c(bytes.first(crcs_bytes));
  if (computed != stored) {
    return absl::DataLossError(absl::StrCat("frame table checksum is ", absl::Hex(computed),
                                            ", stored is ", absl::Hex(stored)));
  }
  const size_t padded_bytes = static_cast<size_t>(FramesOffset(num_layers)) - sizeof(ObjectHeader);
  for (size_t i = table_bytes; i < std::min(padded_bytes, bytes.size()); ++i) {
    if (bytes[i] != std::byte{0}) {
      return absl::DataLossError(absl::StrCat("padding after the frame table has byte ",
                                              std::to_integer<int>(bytes[i]), " at ", i,
                                              ", not 0"));
    }
  }
  std::vector<uint32_t> crcs(static_cast<size_t>(num_layers));
  std::memcpy(crcs.data(), bytes.data(), crcs_bytes);
  return crcs;
}

absl::Status VerifyFrame(std::span<const std::byte> frame, int layer, uint32_t expected_crc32c) {
  const uint32_t computed = Crc32c(frame);
  if (computed == expected_crc32c) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("layer ", layer, " frame checksum is ",
                                          absl::Hex(computed), ", stored is ",
                                          absl::Hex(expected_crc32c)));
}

absl::Status CheckFrameNumbers(const ObjectHeader& header, int layer,
                               std::span<const std::byte> frame) {
  const PayloadLayout layout = PayloadLayout::Of(header);
  if (frame.size() != static_cast<size_t>(layout.frame_bytes)) {
    return absl::DataLossError(absl::StrCat("layer ", layer, " frame has ", frame.size(),
                                            " bytes, not ", layout.frame_bytes));
  }
  if (layout.encoding.is_fp16()) {
    return CheckRowSection(frame, 0, layout.head_bytes, layout.num_kv_heads, layer,
                           header.kind == ObjectKind::kTable ? "pattern" : "fp16 value");
  }
  for (int kv_head = 0; kv_head < layout.num_kv_heads; ++kv_head) {
    const auto head = frame.subspan(static_cast<size_t>(kv_head * layout.head_bytes),
                                    static_cast<size_t>(layout.head_bytes));
    PKV_RETURN_IF_ERROR(CheckCodeParams(header, layout, layer, kv_head, head));
  }
  PKV_RETURN_IF_ERROR(CheckRowSection(frame, layout.sinks, layout.sink_head_bytes,
                                      layout.num_kv_heads, layer, "sink"));
  return CheckRowSection(frame, layout.appended, layout.appended_head_bytes, layout.num_kv_heads,
                         layer, "appended pattern");
}

absl::StatusOr<ObjectView> ObjectView::Parse(std::span<const std::byte> bytes) {
  ObjectView view;
  PKV_ASSIGN_OR_RETURN(view.header_, ParseHeader(bytes));
  if (bytes.size() != view.header_.object_bytes) {
    return absl::DataLossError(absl::StrCat("object has ", bytes.size(), " bytes, its header says ",
                                            view.header_.object_bytes));
  }
  PKV_ASSIGN_OR_RETURN(view.frame_crcs_, ParseFrameTable(bytes.subspan(sizeof(ObjectHeader)),
                                                         view.header_.num_layers));
  view.bytes_ = bytes;
  return view;
}

std::span<const std::byte> ObjectView::frame(int layer) const {
  PKV_CHECK(layer >= 0 && layer < header_.num_layers, layer, " of ", header_.num_layers);
  const auto frame_bytes = static_cast<size_t>(header_.frame_bytes);
  return bytes_.subspan(static_cast<size_t>(FramesOffset(header_.num_layers)) + layer * frame_bytes,
                        frame_bytes);
}

absl::Status ObjectView::VerifyLayer(int layer) const {
  PKV_RETURN_IF_ERROR(VerifyFrame(frame(layer), layer, frame_crc32c(layer)));
  return CheckFrameNumbers(header_, layer, frame(layer));
}

absl::Status ObjectView::VerifyAll() const {
  for (int layer = 0; layer < header_.num_layers; ++layer) {
    PKV_RETURN_IF_ERROR(VerifyLayer(layer));
  }
  if (header_.kind != ObjectKind::kTable) return absl::OkStatus();
  const Digest computed =
      TableId(header_.profile, header_.shape(), header_.num_patterns_k, header_.num_patterns_v,
              bytes_.subspan(FramesOffset(header_.num_layers)));
  if (computed == header_.id) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("table id is ", computed.ToShortHex(), ", stored is ", header_.id.ToShortHex()));
}

}  // namespace pkv
