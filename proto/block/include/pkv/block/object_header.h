#ifndef PKV_BLOCK_OBJECT_HEADER_H_
#define PKV_BLOCK_OBJECT_HEADER_H_

// The 256 bytes every object starts with. One header for wire, DRAM and disk (BLOCK_FORMAT.md,
// "Header").

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/block/digest.h"
#include "pkv/block/kv_shape.h"
#include "pkv/block/object_key.h"

namespace pkv {

static_assert(std::endian::native == std::endian::little,
              "the format is read and written in place");

inline constexpr std::array<char, 8> kObjectMagic = {'\x89', 'P',  'K',    'V',
                                                     '\r',   '\n', '\x1a', '\n'};
inline constexpr uint16_t kFormatMajor = 2;
inline constexpr uint16_t kFormatMinor = 0;

// ObjectHeader::flags.
inline constexpr uint8_t kFlagHasPatterns = 1;  // blocks: pattern ids are stored
inline constexpr uint8_t kFlagAppendsK = 2;     // blocks: carries one new K pattern per kv head
inline constexpr uint8_t kFlagAppendsV = 4;     // blocks: carries one new V pattern per kv head
inline constexpr uint8_t kFlagRotated = 8;      // blocks: K and V are rotated

//   0 magic 8 | 8 major 2 | 10 minor 2 | 12 header_bytes 4
//  16 kind 1 | bits_k 1 | bits_v 1 | flags 1 | 20 k_group_tokens 2 | v_group_channels 2
//  24 num_layers 2 | num_kv_heads 2 | head_dim 2 | num_tokens 2 | 32 num_sinks 2 | num_patterns_k 2
//  36 num_patterns_v 2 | k_fine_tokens 2 | 40 first_token 8 | 48 frame_bytes 8 | 56 object_bytes 8
//  64 variant_name 16 | 80 params_digest 8 | 88 reserved 8
//  96 profile 32 | 128 id 32 | 160 parent 32 | 192 table 32 | 224 reserved 28 | 252 header_crc32c 4
struct ObjectHeader {
  std::array<char, 8> magic = kObjectMagic;
  uint16_t version_major = kFormatMajor;
  uint16_t version_minor = kFormatMinor;
  uint32_t header_bytes = 256;
  ObjectKind kind = ObjectKind::kBlock;
  uint8_t bits_k = 16;
  uint8_t bits_v = 16;
  uint8_t flags = 0;
  uint16_t k_group_tokens = 0;
  uint16_t v_group_channels = 0;
  uint16_t num_layers = 0;
  uint16_t num_kv_heads = 0;
  uint16_t head_dim = 0;
  uint16_t num_tokens = 0;  // block: 128; window: 1..4096; table: 0
  uint16_t num_sinks = 0;   // block 0 only: tokens [0, num_sinks) are stored as fp16, not as codes
  uint16_t num_patterns_k =
      0;  // table: patterns held; block: size of the bank before this block appends to it
  uint16_t num_patterns_v = 0;
  uint16_t k_fine_tokens = 0;           // block: as in Encoding; else 0
  uint64_t first_token = 0;             // position of the first token; a multiple of 128
  uint64_t frame_bytes = 0;             // bytes of one layer frame, a multiple of 128
  uint64_t object_bytes = 0;            // header, frame table and all frames
  std::array<char, 16> variant_name{};  // NUL-padded, at least one NUL
  uint64_t params_digest = 0;
  uint64_t reserved1 = 0;
  Digest profile;  // ModelProfile::ComputeDigest()
  Digest id;       // as in ObjectKey
  Digest parent;   // block, window: prefix id of the block before; zero at the start and for tables
  Digest table;    // block with patterns: id of its pattern table; else zero
  std::array<uint8_t, 28> reserved2{};
  uint32_t header_crc32c = 0;  // of bytes [0, 252)

  friend bool operator==(const ObjectHeader&, const ObjectHeader&) = default;

  KvShape shape() const { return {num_layers, num_kv_heads, head_dim}; }
  Encoding encoding() const {
    return {bits_k,
            bits_v,
            k_group_tokens,
            v_group_channels,
            (flags & kFlagHasPatterns) != 0,
            k_fine_tokens,
            (flags & kFlagRotated) != 0};
  }
  // Sets the fields and flags that encoding() reads.
  void set_encoding(const Encoding& encoding);
  Variant variant() const;
  ObjectKey key() const { return {kind, id, variant()}; }
};

static_assert(sizeof(ObjectHeader) == 256 && alignof(ObjectHeader) == 8);
static_assert(std::is_trivially_copyable_v<ObjectHeader>);
static_assert(std::has_unique_object_representations_v<ObjectHeader>, "no padding");
static_assert(offsetof(ObjectHeader, kind) == 16 && offsetof(ObjectHeader, num_layers) == 24);
static_assert(offsetof(ObjectHeader, first_token) == 40 &&
              offsetof(ObjectHeader, variant_name) == 64);
static_assert(offsetof(ObjectHeader, profile) == 96 &&
              offsetof(ObjectHeader, header_crc32c) == 252);

// InvalidArgument unless `name` is 1..15 bytes of [a-z0-9_-].
absl::Status SetVariant(const Variant& variant, ObjectHeader& header);

// Bytes of header and frame table: 256 + num_layers CRCs + one CRC, rounded up to 128. Frames start
// here.
uint64_t FramesOffset(int num_layers);

// Checks every field but the ids and the checksum and computes frame_bytes and object_bytes from
// the rest.
//   InvalidArgument     a field out of its limits, or an impossible combination; names field, value
//   and limit
struct ObjectSizes {
  uint64_t frame_bytes = 0;
  uint64_t object_bytes = 0;
};
absl::StatusOr<ObjectSizes> ComputeObjectSizes(const ObjectHeader& header);

// Reads and checks a header: magic, version, checksum, fields, and that the two sizes in it are
// what the geometry says.
//   DataLoss            shorter than 256 bytes, wrong magic, wrong checksum
//   FailedPrecondition  a major version this build does not read
//   InvalidArgument     impossible geometry, or an id that must be set or zero and is not
absl::StatusOr<ObjectHeader> ParseHeader(std::span<const std::byte> bytes);

// Fills in the sizes and the checksum and writes the 256 bytes. InvalidArgument as
// ComputeObjectSizes, or an id (profile, id, parent, table) that must be set or zero and is not.
absl::Status SealHeader(ObjectHeader& header, std::span<std::byte, 256> out);

}  // namespace pkv

#endif  // PKV_BLOCK_OBJECT_HEADER_H_
