#include "pkv/block/prefix_hash.h"

#include <array>
#include <bit>

#include "absl/strings/str_cat.h"

namespace pkv {
namespace {

// Version of every rule in this file. A change of any of them is another key function: profiles,
// and with them all ids, then differ.
constexpr int kKeyFunctionVersion = 1;

// Each kind of id starts with its own tag, its closing NUL included, so that none can be taken for
// another.
constexpr char kPrefixTag[] = "pkv.prefix.v1";
constexpr char kTailTag[] = "pkv.tail.v1";
constexpr char kTableTag[] = "pkv.table.v1";

template <typename T>
std::span<const std::byte> BytesOf(const T& object) {
  return std::as_bytes(std::span(&object, 1));
}

Digest ChainedId(std::span<const char> tag, const Digest& profile, const Digest& parent,
                 std::span<const int32_t> tokens) {
  const auto count = static_cast<uint32_t>(tokens.size());
  return Sha256({std::as_bytes(tag), BytesOf(profile.bytes), BytesOf(parent.bytes), BytesOf(count),
                 std::as_bytes(tokens)});
}

}  // namespace

Digest ModelProfile::ComputeDigest() const {
  // The adapter is last because it may hold any byte: nothing after it can be imitated.
  const std::string text = absl::StrCat(
      "key_function=", kKeyFunctionVersion, "\nblock_tokens=", kBlockTokens,
      "\nnum_layers=", shape.num_layers, "\nnum_kv_heads=", shape.num_kv_heads,
      "\nhead_dim=", shape.head_dim,
      "\nrope_theta=", absl::Hex(std::bit_cast<uint64_t>(rope_theta), absl::kZeroPad16),
      "\nweights=", weights.ToHex(), "\nadapter=", adapter, "\n");
  return Sha256({std::as_bytes(std::span(text))});
}

absl::StatusOr<Digest> BlockPrefixId(const Digest& profile, const Digest& parent,
                                     std::span<const int32_t> tokens) {
  if (tokens.size() != kBlockTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("block has ", tokens.size(), " token ids, not ", kBlockTokens));
  }
  return ChainedId(kPrefixTag, profile, parent, tokens);
}

std::vector<Digest> PrefixIds(const Digest& profile, std::span<const int32_t> tokens) {
  std::vector<Digest> ids;
  ids.reserve(tokens.size() / kBlockTokens);
  Digest parent;
  for (; tokens.size() >= kBlockTokens; tokens = tokens.subspan(kBlockTokens)) {
    parent = ChainedId(kPrefixTag, profile, parent, tokens.first(kBlockTokens));
    ids.push_back(parent);
  }
  return ids;
}

Digest TailId(const Digest& profile, const Digest& parent, std::span<const int32_t> tokens) {
  return ChainedId(kTailTag, profile, parent, tokens);
}

Digest TableId(const Digest& profile, const KvShape& shape, int num_patterns_k, int num_patterns_v,
               std::span<const std::byte> frames) {
  const std::array<uint16_t, 5> geometry = {
      static_cast<uint16_t>(shape.num_layers), static_cast<uint16_t>(shape.num_kv_heads),
      static_cast<uint16_t>(shape.head_dim), static_cast<uint16_t>(num_patterns_k),
      static_cast<uint16_t>(num_patterns_v)};
  return Sha256(
      {std::as_bytes(std::span(kTableTag)), BytesOf(profile.bytes), BytesOf(geometry), frames});
}

}  // namespace pkv
