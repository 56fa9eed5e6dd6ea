#include "pkv/block/object_header.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "pkv/block/aligned_buffer.h"
#include "proto/base/checked_math.h"
#include "proto/base/checksum.h"
#include "proto/base/status_macros.h"
#include "proto/block/payload_layout.h"

namespace pkv {
namespace {

constexpr size_t kHeaderBytes = sizeof(ObjectHeader);
constexpr size_t kChecksumOffset = offsetof(ObjectHeader, header_crc32c);
constexpr int kMaxVariantNameBytes = 15;

const char* KindName(ObjectKind kind) {
  switch (kind) {
    case ObjectKind::kBlock:
      return "block";
    case ObjectKind::kWindow:
      return "window";
    case ObjectKind::kTable:
      return "table";
  }
  return "unknown";
}

// InvalidArgument "<field> <value> <rule>, in a <kind>" unless `ok`. The rule's words are put
// together only then: a get parses hundreds of headers before its first byte.
template <typename... Words>
absl::Status Expect(bool ok, const ObjectHeader& header, absl::string_view field, uint64_t value,
                    const Words&... rule) {
  if (ok) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " ", value, " ", rule..., ", in a ", KindName(header.kind)));
}

bool IsVariantByte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
}

absl::Status CheckVariantName(absl::string_view name) {
  if (!name.empty() && name.size() <= kMaxVariantNameBytes &&
      std::all_of(name.begin(), name.end(), IsVariantByte)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("variant name \"", absl::CHexEscape(name.substr(0, 64)), "\" of ", name.size(),
                   " bytes is not 1..", kMaxVariantNameBytes, " of [a-z0-9_-]"));
}

// The field holds a name, then NULs only.
absl::Status CheckVariantField(const ObjectHeader& header) {
  const auto& field = header.variant_name;
  const auto end = std::find(field.begin(), field.end(), '\0');
  if (end == field.end() || std::any_of(end, field.end(), [](char c) { return c != '\0'; })) {
    return absl::InvalidArgumentError(absl::StrCat(
        "variant_name \"", absl::CHexEscape(absl::string_view(field.data(), field.size())),
        "\" is not padded with NUL to 16 bytes"));
  }
  return CheckVariantName(
      absl::string_view(field.data(), static_cast<size_t>(end - field.begin())));
}

absl::Status CheckFixedFields(const ObjectHeader& header) {
  if (header.magic != kObjectMagic) {
    return absl::InvalidArgumentError("magic is not that of a pkv object");
  }
  PKV_RETURN_IF_ERROR(Expect(header.version_major == kFormatMajor, header, "version_major",
                             header.version_major, "is not ", kFormatMajor));
  PKV_RETURN_IF_ERROR(Expect(header.header_bytes == kHeaderBytes, header, "header_bytes",
                             header.header_bytes, "is not ", kHeaderBytes));
  // A later minor version may use reserved bytes for what a reader of this one may ignore.
  if (header.version_minor > kFormatMinor) return absl::OkStatus();
  PKV_RETURN_IF_ERROR(
      Expect(header.reserved1 == 0, header, "reserved1", header.reserved1, "is not 0"));
  for (const uint8_t byte : header.reserved2) {
    PKV_RETURN_IF_ERROR(Expect(byte == 0, header, "reserved2 byte", byte, "is not 0"));
  }
  return absl::OkStatus();
}

// Pattern counts and flags of a block.
absl::Status CheckBlockPatterns(const ObjectHeader& header) {
  constexpr uint8_t kAppends = kFlagAppendsK | kFlagAppendsV;
  const int k = header.num_patterns_k, v = header.num_patterns_v;
  if ((header.flags & kFlagHasPatterns) == 0) {
    PKV_RETURN_IF_ERROR(Expect((header.flags & kAppends) == 0, header, "flags", header.flags,
                               "append patterns without having any"));
    PKV_RETURN_IF_ERROR(Expect(k == 0, header, "num_patterns_k", k, "is not 0, without patterns"));
    return Expect(v == 0, header, "num_patterns_v", v, "is not 0, without patterns");
  }
  const int max_k = kMaxPatterns - ((header.flags & kFlagAppendsK) != 0 ? 1 : 0);
  const int max_v = kMaxPatterns - ((header.flags & kFlagAppendsV) != 0 ? 1 : 0);
  PKV_RETURN_IF_ERROR(Expect(k <= max_k, header, "num_patterns_k", k, "not in 0..", max_k));
  PKV_RETURN_IF_ERROR(Expect(v <= max_v, header, "num_patterns_v", v, "not in 0..", max_v));
  return Expect(k + v >= 1, header, "num_patterns_k + num_patterns_v", k + v,
                "is not positive: the table has a pattern at least");
}

absl::Status CheckBlock(const ObjectHeader& header) {
  constexpr uint8_t kKnownFlags = kFlagHasPatterns | kFlagAppendsK | kFlagAppendsV | kFlagRotated;
  PKV_RETURN_IF_ERROR(Expect((header.flags & ~kKnownFlags) == 0, header, "flags", header.flags,
                             "not in 0..", kKnownFlags));
  PKV_RETURN_IF_ERROR(Expect(header.num_tokens == kBlockTokens, header, "num_tokens",
                             header.num_tokens, "is not ", kBlockTokens));
  const bool may_have_sinks = header.first_token == 0 && !header.encoding().is_fp16();
  PKV_RETURN_IF_ERROR(Expect(header.num_sinks == 0 || may_have_sinks, header, "num_sinks",
                             header.num_sinks, "is not 0, with first_token ", header.first_token,
                             " and bits_k ", header.bits_k));
  PKV_RETURN_IF_ERROR(Expect(header.num_sinks <= kMaxSinks, header, "num_sinks", header.num_sinks,
                             "not in 0..", kMaxSinks));
  return CheckBlockPatterns(header);
}

// What windows and tables share: fp16 rows and nothing that belongs to blocks only.
absl::Status CheckRowsOnly(const ObjectHeader& header) {
  PKV_RETURN_IF_ERROR(Expect(header.bits_k == 16, header, "bits_k", header.bits_k, "is not 16"));
  PKV_RETURN_IF_ERROR(Expect(header.flags == 0, header, "flags", header.flags, "is not 0"));
  return Expect(header.num_sinks == 0, header, "num_sinks", header.num_sinks, "is not 0");
}

absl::Status CheckWindow(const ObjectHeader& header) {
  PKV_RETURN_IF_ERROR(CheckRowsOnly(header));
  PKV_RETURN_IF_ERROR(Expect(header.num_tokens >= 1 && header.num_tokens <= kMaxWindowTokens,
                             header, "num_tokens", header.num_tokens, "not in 1..",
                             kMaxWindowTokens));
  PKV_RETURN_IF_ERROR(Expect(header.num_patterns_k == 0, header, "num_patterns_k",
                             header.num_patterns_k, "is not 0"));
  return Expect(header.num_patterns_v == 0, header, "num_patterns_v", header.num_patterns_v,
                "is not 0");
}

absl::Status CheckTable(const ObjectHeader& header) {
  PKV_RETURN_IF_ERROR(CheckRowsOnly(header));
  PKV_RETURN_IF_ERROR(
      Expect(header.num_tokens == 0, header, "num_tokens", header.num_tokens, "is not 0"));
  PKV_RETURN_IF_ERROR(
      Expect(header.first_token == 0, header, "first_token", header.first_token, "is not 0"));
  const int k = header.num_patterns_k, v = header.num_patterns_v;
  const std::string rule = absl::StrCat("not in 0..", kMaxPatterns);
  PKV_RETURN_IF_ERROR(Expect(k <= kMaxPatterns, header, "num_patterns_k", k, rule));
  PKV_RETURN_IF_ERROR(Expect(v <= kMaxPatterns, header, "num_patterns_v", v, rule));
  return Expect(k + v >= 1, header, "num_patterns_k + num_patterns_v", k + v, "is not positive");
}

absl::Status CheckKind(const ObjectHeader& header) {
  switch (header.kind) {
    case ObjectKind::kBlock:
      return CheckBlock(header);
    case ObjectKind::kWindow:
      return CheckWindow(header);
    case ObjectKind::kTable:
      return CheckTable(header);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("kind ", static_cast<int>(header.kind), " not in 1..3"));
}

// Which ids are set and which are not. Apart from the rest because a builder learns them last.
absl::Status CheckIds(const ObjectHeader& header) {
  const auto check = [&header](const char* field, const Digest& digest, bool is_set) {
    if (digest.IsZero() != is_set) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(field, " ", digest.ToShortHex(), is_set ? " is zero" : " is not zero",
                     ", in a ", KindName(header.kind), " with first_token ", header.first_token,
                     " and flags ", header.flags));
  };
  PKV_RETURN_IF_ERROR(check("profile", header.profile, true));
  PKV_RETURN_IF_ERROR(check("id", header.id, true));
  PKV_RETURN_IF_ERROR(check("parent", header.parent, header.first_token != 0));
  return check("table", header.table, header.encoding().has_patterns);
}

}  // namespace

void ObjectHeader::set_encoding(const Encoding& encoding) {
  bits_k = static_cast<uint8_t>(encoding.bits_k);
  bits_v = static_cast<uint8_t>(encoding.bits_v);
  k_group_tokens = static_cast<uint16_t>(encoding.k_group_tokens);
  v_group_channels = static_cast<uint16_t>(encoding.v_group_channels);
  k_fine_tokens = static_cast<uint16_t>(encoding.k_fine_tokens);
  flags &= static_cast<uint8_t>(~(kFlagHasPatterns | kFlagRotated));
  if (encoding.has_patterns) flags |= kFlagHasPatterns;
  if (encoding.rotated) flags |= kFlagRotated;
}

Variant ObjectHeader::variant() const {
  const auto end = std::find(variant_name.begin(), variant_name.end(), '\0');
  return {std::string(variant_name.begin(), end), params_digest};
}

absl::Status SetVariant(const Variant& variant, ObjectHeader& header) {
  PKV_RETURN_IF_ERROR(CheckVariantName(variant.name));
  header.variant_name = {};
  std::copy(variant.name.begin(), variant.name.end(), header.variant_name.begin());
  header.params_digest = variant.params_digest;
  return absl::OkStatus();
}

uint64_t FramesOffset(int num_layers) {
  return AlignUp(kHeaderBytes + sizeof(uint32_t) * (static_cast<uint64_t>(num_layers) + 1),
                 kFrameAlignment);
}

absl::StatusOr<ObjectSizes> ComputeObjectSizes(const ObjectHeader& header) {
  PKV_RETURN_IF_ERROR(CheckFixedFields(header));
  PKV_RETURN_IF_ERROR(ValidateShape(header.shape()));
  PKV_RETURN_IF_ERROR(ValidateEncoding(header.shape(), header.encoding()));
  PKV_RETURN_IF_ERROR(Expect(header.first_token % kBlockTokens == 0, header, "first_token",
                             header.first_token, "is not a multiple of ", kBlockTokens));
  PKV_RETURN_IF_ERROR(Expect(header.first_token <= kMaxFirstToken, header, "first_token",
                             header.first_token, "not in 0..", kMaxFirstToken));
  PKV_RETURN_IF_ERROR(CheckKind(header));
  PKV_RETURN_IF_ERROR(CheckVariantField(header));

  ObjectSizes sizes;
  sizes.frame_bytes = static_cast<uint64_t>(PayloadLayout::Of(header).frame_bytes);
  PKV_ASSIGN_OR_RETURN(const uint64_t frames,
                       CheckedMultiply(sizes.frame_bytes, header.num_layers));
  PKV_ASSIGN_OR_RETURN(sizes.object_bytes, CheckedAdd(FramesOffset(header.num_layers), frames));
  return sizes;
}

absl::StatusOr<ObjectHeader> ParseHeader(std::span<const std::byte> bytes) {
  if (bytes.size() < kHeaderBytes) {
    return absl::DataLossError(
        absl::StrCat("object has ", bytes.size(), " bytes, a header ", kHeaderBytes));
  }
  ObjectHeader header;
  std::memcpy(&header, bytes.data(), kHeaderBytes);
  if (header.magic != kObjectMagic) {
    return absl::DataLossError(
        absl::StrCat("magic is \"",
                     absl::CHexEscape(absl::string_view(header.magic.data(), header.magic.size())),
                     "\", not that of a pkv object"));
  }
  if (header.version_major != kFormatMajor) {
    return absl::FailedPreconditionError(absl::StrCat("format version ", header.version_major, ".",
                                                      header.version_minor, ", this build reads ",
                                                      kFormatMajor, ".x"));
  }
  const uint32_t computed = Crc32c(bytes.first(kChecksumOffset));
  if (computed != header.header_crc32c) {
    return absl::DataLossError(absl::StrCat("header checksum is ", absl::Hex(computed),
                                            ", stored is ", absl::Hex(header.header_crc32c)));
  }
  PKV_ASSIGN_OR_RETURN(const ObjectSizes sizes, ComputeObjectSizes(header));
  PKV_RETURN_IF_ERROR(CheckIds(header));
  PKV_RETURN_IF_ERROR(Expect(header.frame_bytes == sizes.frame_bytes, header, "frame_bytes",
                             header.frame_bytes, "is not the geometry's ", sizes.frame_bytes));
  PKV_RETURN_IF_ERROR(Expect(header.object_bytes == sizes.object_bytes, header, "object_bytes",
                             header.object_bytes, "is not the geometry's ", sizes.object_bytes));
  return header;
}

absl::Status SealHeader(ObjectHeader& header, std::span<std::byte, 256> out) {
  PKV_ASSIGN_OR_RETURN(const ObjectSizes sizes, ComputeObjectSizes(header));
  PKV_RETURN_IF_ERROR(CheckIds(header));
  header.frame_bytes = sizes.frame_bytes;
  header.object_bytes = sizes.object_bytes;
  header.header_crc32c = Crc32c(std::as_bytes(std::span(&header, 1)).first(kChecksumOffset));
  std::memcpy(out.data(), &header, kHeaderBytes);
  return absl::OkStatus();
}

}  // namespace pkv
