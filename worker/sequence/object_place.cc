#include "worker/sequence/object_place.h"

#include "absl/strings/str_cat.h"
#include "pkv/block/prefix_hash.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace pkv {

absl::Status PlaceRules::Check(const ObjectHeader& header, const ObjectPlace& place) const {
  const bool same_geometry = header.shape() == shape_ && (place.kind != ObjectKind::kBlock ||
                                                          header.encoding() == params_.encoding);
  // Readers have room for as many sinks as the variant says, and read as many.
  const bool has_sinks =
      place.kind == ObjectKind::kBlock && place.first_token == 0 && !params_.encoding.is_fp16();
  const bool same_sinks = header.num_sinks == (has_sinks ? params_.num_sinks : 0);
  if (header.kind == place.kind && header.profile == profile_ && header.variant() == variant_ &&
      same_geometry && same_sinks && header.first_token == place.first_token &&
      header.parent == place.parent) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "object ", header.id.ToShortHex(), " (kind ", static_cast<int>(header.kind), ", variant ",
      header.variant().name, ", ", header.num_layers, " layers, ", header.num_kv_heads,
      " kv heads, head_dim ", header.head_dim, ", ", header.num_sinks, " sinks, first token ",
      header.first_token, ") is not the one that follows token ", place.first_token, " of a ",
      variant_.name, " sequence of this model"));
}

ObjectHeader HeaderOf(ObjectKind kind, const KvShape& shape, const CodecParams& params,
                      const Digest& profile) {
  ObjectHeader header;
  header.kind = kind;
  header.num_layers = static_cast<uint16_t>(shape.num_layers);
  header.num_kv_heads = static_cast<uint16_t>(shape.num_kv_heads);
  header.head_dim = static_cast<uint16_t>(shape.head_dim);
  header.profile = profile;
  if (kind == ObjectKind::kBlock) {
    header.set_encoding(params.encoding);
    header.num_tokens = kBlockTokens;
  }
  PKV_CHECK(SetVariant(params.variant(), header).ok(), params.name);
  return header;
}

absl::StatusOr<ObjectHeader> BlockHeaderOf(const KvShape& shape, const CodecParams& params,
                                           const Digest& profile, uint64_t first_token,
                                           const Digest& parent, std::span<const int32_t> tokens) {
  ObjectHeader header = HeaderOf(ObjectKind::kBlock, shape, params, profile);
  header.first_token = first_token;
  header.parent = parent;
  PKV_ASSIGN_OR_RETURN(header.id, BlockPrefixId(profile, parent, tokens));
  if (first_token == 0 && !params.encoding.is_fp16()) {
    header.num_sinks = static_cast<uint16_t>(params.num_sinks);
  }
  return header;
}

}  // namespace pkv
