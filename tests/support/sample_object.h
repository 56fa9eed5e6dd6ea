#ifndef PKV_TESTS_SUPPORT_SAMPLE_OBJECT_H_
#define PKV_TESTS_SUPPORT_SAMPLE_OBJECT_H_

// Whole objects with content that obeys BLOCK_FORMAT.md, made from a seed.
//
// The golden files were made by this code: what it writes for given arguments never changes.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "pkv/block/object_builder.h"
#include "pkv/block/prefix_hash.h"
#include "proto/base/float16.h"
#include "proto/base/status_macros.h"
#include "proto/block/fragment_order.h"
#include "proto/block/payload_layout.h"

namespace pkv {

// SplitMix64 (Steele, Lea, Flood 2014). Not std::mt19937 with a distribution: what a distribution
// makes of the bits differs between standard libraries.
class SampleRandom {
 public:
  explicit SampleRandom(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // In [0, limit). The bias is of no importance for tests.
  uint32_t Below(uint32_t limit) { return static_cast<uint32_t>(Next() >> 32) % limit; }

 private:
  uint64_t state_;
};

inline Digest SampleDigest(absl::string_view name) {
  return Sha256({std::as_bytes(std::span(name.data(), name.size()))});
}

struct SampleBlock {
  KvShape shape;
  Encoding encoding = {};
  uint64_t first_token = 0;
  int num_sinks = 0;
  int num_patterns_k = 0;
  int num_patterns_v = 0;
  uint8_t append_flags = 0;  // kFlagAppendsK | kFlagAppendsV
};

namespace sample_internal {

inline ObjectHeader HeaderOf(ObjectKind kind, const KvShape& shape) {
  ObjectHeader header;
  header.kind = kind;
  header.num_layers = static_cast<uint16_t>(shape.num_layers);
  header.num_kv_heads = static_cast<uint16_t>(shape.num_kv_heads);
  header.head_dim = static_cast<uint16_t>(shape.head_dim);
  std::memcpy(header.variant_name.data(), "sample", 6);
  header.params_digest = 0x0123456789abcdefu;
  header.profile = SampleDigest("profile");
  header.id = SampleDigest("id");
  return header;
}

inline void StoreFloat16(std::span<std::byte> values, int64_t index, Float16Bits value) {
  std::memcpy(values.data() + index * 2, &value, sizeof(value));
}

// Fills with fp16 values: magnitudes in [2^low_exponent, 2^high_exponent), signed or not.
inline void FillFloat16(SampleRandom& random, int low_exponent, int high_exponent, bool is_signed,
                        std::span<std::byte> values) {
  for (size_t i = 0; i < values.size() / 2; ++i) {
    const uint32_t exponent = static_cast<uint32_t>(15 + low_exponent) +
                              random.Below(static_cast<uint32_t>(high_exponent - low_exponent));
    const uint32_t sign = is_signed ? random.Below(2) : 0;
    StoreFloat16(values, static_cast<int64_t>(i),
                 static_cast<Float16Bits>(sign << 15 | exponent << 10 | random.Below(1024)));
  }
}

// Ids below `bank_size`, one in eight raw.
inline void FillIds(SampleRandom& random, int bank_size, std::span<std::byte> ids) {
  for (std::byte& id : ids) {
    const bool is_raw = random.Below(8) == 0 || bank_size == 0;
    id = static_cast<std::byte>(is_raw ? kRawPatternId
                                       : random.Below(static_cast<uint32_t>(bank_size)));
  }
}

inline void ClearCode(std::span<std::byte> codes, CodePosition position, int bits) {
  uint32_t word;
  std::byte* const at = codes.data() + int64_t{position.word_index} * 4;
  std::memcpy(&word, at, sizeof(word));
  word &= ~(((1u << bits) - 1) << position.shift);
  std::memcpy(at, &word, sizeof(word));
}

// What BLOCK_FORMAT.md, "Sinks", demands of slots [0, num_sinks). All of them are in the row tiles
// of coarse K codes.
static_assert(kMaxSinks <= kBlockTokens - kFineTokens);
inline void ClearSinkSlots(const PayloadLayout& layout, std::span<std::byte> head) {
  for (int token = 0; token < layout.num_sinks; ++token) {
    for (int channel = 0; channel < layout.head_dim; ++channel) {
      ClearCode(head.subspan(layout.k_codes),
                LocateCode(token, channel, layout.head_dim, layout.encoding.bits_k),
                layout.encoding.bits_k);
      ClearCode(head.subspan(layout.v_codes),
                LocateCode(channel, token, kBlockTokens, layout.encoding.bits_v),
                layout.encoding.bits_v);
    }
    const int row = RowPosition(token, kBlockTokens), column = ColumnPosition(token, kBlockTokens);
    for (int group = 0; group < layout.v_groups(); ++group) {
      StoreFloat16(head.subspan(layout.v_scales), group * kBlockTokens + row, 0);
      StoreFloat16(head.subspan(layout.v_zeros), group * kBlockTokens + column, 0);
    }
    if (layout.encoding.has_patterns) {
      head[layout.k_ids + row] = std::byte{kRawPatternId};
      head[layout.v_ids + column] = std::byte{kRawPatternId};
    }
  }
}

inline void FillCodedHead(const ObjectHeader& header, const PayloadLayout& layout,
                          SampleRandom& random, std::span<std::byte> head) {
  // K codes, K fine codes and V codes.
  for (std::byte& byte : head.first(layout.k_scales)) byte = static_cast<std::byte>(random.Next());
  const auto section = [&head](int64_t begin, int64_t end) {
    return head.subspan(begin, end - begin);
  };
  FillFloat16(random, -6, 0, false, section(layout.k_scales, layout.k_zeros));
  FillFloat16(random, -4, 3, true, section(layout.k_zeros, layout.v_scales));
  FillFloat16(random, -6, 0, false, section(layout.v_scales, layout.v_zeros));
  FillFloat16(random, -4, 3, true, section(layout.v_zeros, layout.k_ids));
  const int bank_k = header.num_patterns_k + ((header.flags & kFlagAppendsK) != 0 ? 1 : 0);
  const int bank_v = header.num_patterns_v + ((header.flags & kFlagAppendsV) != 0 ? 1 : 0);
  FillIds(random, bank_k, section(layout.k_ids, layout.v_ids));
  FillIds(random, bank_v, section(layout.v_ids, layout.head_bytes));
  ClearSinkSlots(layout, head);
}

}  // namespace sample_internal

inline ObjectHeader SampleBlockHeader(const SampleBlock& block) {
  ObjectHeader header = sample_internal::HeaderOf(ObjectKind::kBlock, block.shape);
  header.set_encoding(block.encoding);
  header.flags |= block.append_flags;
  header.num_tokens = kBlockTokens;
  header.num_sinks = static_cast<uint16_t>(block.num_sinks);
  header.num_patterns_k = static_cast<uint16_t>(block.num_patterns_k);
  header.num_patterns_v = static_cast<uint16_t>(block.num_patterns_v);
  header.first_token = block.first_token;
  if (block.first_token != 0) header.parent = SampleDigest("parent");
  if (block.encoding.has_patterns) header.table = SampleDigest("table");
  return header;
}

inline ObjectHeader SampleWindowHeader(const KvShape& shape, uint64_t first_token, int num_tokens) {
  ObjectHeader header = sample_internal::HeaderOf(ObjectKind::kWindow, shape);
  header.num_tokens = static_cast<uint16_t>(num_tokens);
  header.first_token = first_token;
  if (first_token != 0) header.parent = SampleDigest("parent");
  return header;
}

inline ObjectHeader SampleTableHeader(const KvShape& shape, int num_patterns_k,
                                      int num_patterns_v) {
  ObjectHeader header = sample_internal::HeaderOf(ObjectKind::kTable, shape);
  header.num_patterns_k = static_cast<uint16_t>(num_patterns_k);
  header.num_patterns_v = static_cast<uint16_t>(num_patterns_v);
  return header;
}

// Fills one layer frame. Different layers and seeds give different bytes.
inline void FillSampleFrame(const ObjectHeader& header, int layer, uint64_t seed,
                            std::span<std::byte> frame) {
  SampleRandom random(seed * 0x10001u + static_cast<uint64_t>(layer));
  const PayloadLayout layout = PayloadLayout::Of(header);
  if (layout.encoding.is_fp16()) {
    sample_internal::FillFloat16(random, -8, 4, true, frame);
    return;
  }
  for (int kv_head = 0; kv_head < layout.num_kv_heads; ++kv_head) {
    sample_internal::FillCodedHead(header, layout, random,
                                   frame.subspan(kv_head * layout.head_bytes, layout.head_bytes));
  }
  sample_internal::FillFloat16(random, -8, 4, true, frame.subspan(layout.sinks));
}

// A sealed object of `header` with content from `seed`. For a table the id is set by Seal().
inline absl::StatusOr<ObjectBuilder> BuildSample(const ObjectHeader& header, uint64_t seed) {
  PKV_ASSIGN_OR_RETURN(ObjectBuilder builder, ObjectBuilder::Make(header));
  for (int layer = 0; layer < header.num_layers; ++layer) {
    FillSampleFrame(builder.header(), layer, seed, builder.frame(layer));
  }
  PKV_RETURN_IF_ERROR(builder.Seal());
  return builder;
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_SAMPLE_OBJECT_H_
