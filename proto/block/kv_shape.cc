#include "pkv/block/kv_shape.h"

#include "absl/strings/str_cat.h"

namespace pkv {
namespace {

absl::Status CheckRange(const char* field, int value, int max) {
  if (value >= 1 && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " ", value, " not in 1..", max));
}

bool IsCodeBits(int bits) { return bits == 2 || bits == 4; }

bool IsGroupSize(int size) { return size == 32 || size == 64 || size == 128; }

absl::Status ValidateFp16(const Encoding& encoding) {
  if (encoding.k_group_tokens != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("k_group_tokens ", encoding.k_group_tokens, " is not 0, with fp16"));
  }
  if (encoding.v_group_channels != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("v_group_channels ", encoding.v_group_channels, " is not 0, with fp16"));
  }
  if (encoding.has_patterns) {
    return absl::InvalidArgumentError("has_patterns is true, with fp16");
  }
  if (encoding.k_fine_tokens != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("k_fine_tokens ", encoding.k_fine_tokens, " is not 0, with fp16"));
  }
  if (encoding.rotated) return absl::InvalidArgumentError("rotated is true, with fp16");
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateShape(const KvShape& shape) {
  if (absl::Status s = CheckRange("num_layers", shape.num_layers, kMaxLayers); !s.ok()) return s;
  if (absl::Status s = CheckRange("num_kv_heads", shape.num_kv_heads, kMaxKvHeads); !s.ok()) {
    return s;
  }
  if (shape.head_dim != 64 && shape.head_dim != 128) {
    return absl::InvalidArgumentError(
        absl::StrCat("head_dim ", shape.head_dim, " not in {64, 128}"));
  }
  return absl::OkStatus();
}

absl::Status ValidateEncoding(const KvShape& shape, const Encoding& encoding) {
  if (encoding.bits_k == 16 && encoding.bits_v == 16) return ValidateFp16(encoding);
  if (!IsCodeBits(encoding.bits_k) || !IsCodeBits(encoding.bits_v)) {
    return absl::InvalidArgumentError(absl::StrCat("bits_k ", encoding.bits_k, " and bits_v ",
                                                   encoding.bits_v,
                                                   ": not both 16, nor both in {2, 4}"));
  }
  if (!IsGroupSize(encoding.k_group_tokens)) {
    return absl::InvalidArgumentError(
        absl::StrCat("k_group_tokens ", encoding.k_group_tokens, " not in {32, 64, 128}"));
  }
  if (!IsGroupSize(encoding.v_group_channels) || encoding.v_group_channels > shape.head_dim) {
    return absl::InvalidArgumentError(absl::StrCat("v_group_channels ", encoding.v_group_channels,
                                                   " not in {32, 64, 128} up to head_dim ",
                                                   shape.head_dim));
  }
  const bool may_have_fine = encoding.bits_k == 2 && encoding.k_fine_tokens == kFineTokens;
  if (encoding.k_fine_tokens != 0 && !may_have_fine) {
    return absl::InvalidArgumentError(absl::StrCat("k_fine_tokens ", encoding.k_fine_tokens,
                                                   " is neither 0 nor, with bits_k 2, ",
                                                   kFineTokens, "; bits_k is ", encoding.bits_k));
  }
  return absl::OkStatus();
}

}  // namespace pkv
