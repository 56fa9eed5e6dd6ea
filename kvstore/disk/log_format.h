#ifndef PKV_KVSTORE_DISK_LOG_FORMAT_H_
#define PKV_KVSTORE_DISK_LOG_FORMAT_H_

// The bytes of a segment file (kvstore/disk/README.md, "Format").

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/disk/disk.h"
#include "pkv/block/digest.h"
#include "pkv/block/object_key.h"

namespace pkv {

static_assert(std::endian::native == std::endian::little,
              "the format is read and written in place");

inline constexpr std::array<char, 8> kSegmentMagic = {'\x89', 'P', 'K', 'V', 'L', 'O', 'G', '\n'};
inline constexpr uint32_t kLogVersion = 1;
// Of one segment: far above what Open() asks for, far below where sums of sizes overflow.
inline constexpr uint64_t kSegmentBytesMax = uint64_t{1} << 46;
inline constexpr std::array<char, 4> kRecordMagic = {'P', 'K', 'V', 'R'};

// The first unit of a segment begins with this; the rest of the unit is zero.
//   0 magic 8 | 8 version 4 | 12 reserved 4 | 16 number 8 | 24 salt 8 | 32 segment_bytes 8
//  40 reserved 20 | 60 crc32c 4
struct SegmentHead {
  std::array<char, 8> magic = kSegmentMagic;
  uint32_t version = kLogVersion;
  uint32_t reserved1 = 0;
  uint64_t number = 0;         // grows by one from segment to segment
  uint64_t salt = 0;           // drawn at random by the process that wrote the segment
  uint64_t segment_bytes = 0;  // that were taken for it
  std::array<uint8_t, 20> reserved2{};
  uint32_t crc32c = 0;  // of bytes [0, 60)

  friend bool operator==(const SegmentHead&, const SegmentHead&) = default;
};
static_assert(sizeof(SegmentHead) == 64 && offsetof(SegmentHead, crc32c) == 60);
static_assert(std::is_trivially_copyable_v<SegmentHead>);
static_assert(std::has_unique_object_representations_v<SegmentHead>, "no padding");

enum class RecordKind : uint8_t {
  kObject = 1,     // the object stands in the units behind this one
  kTombstone = 2,  // the key was deleted, or its object was damaged
};

// The first unit of a record begins with this; the rest of the unit is zero.
//   0 magic 4 | 4 kind 1 | object_kind 1 | num_layers 2 | 8 salt 8 | 16 segment 8 | 24 offset 8
//  32 object_bytes 8 | 40 frame_bytes 8 | 48 params_digest 8 | 56 variant_name 16
//  72 id 32 | 104 table 32 | 136 num_patterns_k 2 | num_patterns_v 2 | 140 content_crc32c 4
// 144 reserved 108 | 252 crc32c 4
struct RecordHead {
  std::array<char, 4> magic = kRecordMagic;
  RecordKind kind = RecordKind::kObject;
  ObjectKind object_kind = ObjectKind::kBlock;
  uint16_t num_layers = 0;
  uint64_t salt = 0;     // of the segment
  uint64_t segment = 0;  // its number; with `offset` the place, and the record's rank in time
  uint64_t offset = 0;   // of this unit in the segment
  uint64_t object_bytes = 0;
  uint64_t frame_bytes = 0;
  uint64_t params_digest = 0;
  std::array<char, 16> variant_name{};  // NUL-padded, at least one NUL
  Digest id;
  Digest table;  // a block's; else zero
  // Patterns of the bank behind this block, those it appends included; else 0.
  uint16_t num_patterns_k = 0;
  uint16_t num_patterns_v = 0;
  // Of the header's checksum and the frames', bytes [252, 256 + 4 * num_layers) of the object. Not
  // of the whole head: it ends with a checksum of its own, and the CRC of such bytes is a constant.
  uint32_t content_crc32c = 0;
  std::array<uint8_t, 108> reserved{};
  uint32_t crc32c = 0;  // of bytes [0, 252)

  friend bool operator==(const RecordHead&, const RecordHead&) = default;

  ObjectKey key() const;
  // Whole record: this unit and the object's.
  uint64_t record_bytes() const;
};
static_assert(sizeof(RecordHead) == 256 && offsetof(RecordHead, crc32c) == 252);
static_assert(offsetof(RecordHead, salt) == 8 && offsetof(RecordHead, params_digest) == 48);
static_assert(offsetof(RecordHead, id) == 72 && offsetof(RecordHead, table) == 104);
static_assert(offsetof(RecordHead, content_crc32c) == 140);
static_assert(std::is_trivially_copyable_v<RecordHead>);
static_assert(std::has_unique_object_representations_v<RecordHead>, "no padding");

// Sets the checksum and writes a whole unit.
void SealSegmentHead(SegmentHead head, std::span<std::byte, kDiskUnitBytes> unit);
void SealRecordHead(RecordHead head, std::span<std::byte, kDiskUnitBytes> unit);

// REQUIRES (both): `unit` has kDiskUnitBytes.
//   NotFound            all zero: nothing was written here
//   FailedPrecondition  another magic, or a version this build does not read
//   DataLoss            a checksum is wrong, or a field cannot be
absl::StatusOr<SegmentHead> ParseSegmentHead(std::span<const std::byte> unit);
// Of the record at `offset` of `segment`.
//   NotFound  all zero
//   DataLoss  another magic, checksum, salt or place, or a field cannot be; nothing here counts
absl::StatusOr<RecordHead> ParseRecordHead(std::span<const std::byte> unit,
                                           const SegmentHead& segment, uint64_t offset);

// A tombstone's, or an object's but for what its header says. REQUIRES: a variant that an
// ObjectHeader can have.
RecordHead RecordHeadOf(RecordKind kind, const ObjectKey& key);

}  // namespace pkv

#endif  // PKV_KVSTORE_DISK_LOG_FORMAT_H_
