#include "proto/transport/convert.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

constexpr size_t kMaxVariantNameBytes = 15;

bool IsVariantNameByte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
}

// Both sides number the kinds alike; the format and the .proto each freeze their own.
static_assert(static_cast<int>(ObjectKind::kBlock) == v1::OBJECT_KIND_BLOCK);
static_assert(static_cast<int>(ObjectKind::kWindow) == v1::OBJECT_KIND_WINDOW);
static_assert(static_cast<int>(ObjectKind::kTable) == v1::OBJECT_KIND_TABLE);

static_assert(static_cast<int>(absl::StatusCode::kCancelled) == grpc::StatusCode::CANCELLED);
static_assert(static_cast<int>(absl::StatusCode::kDataLoss) == grpc::StatusCode::DATA_LOSS);
static_assert(static_cast<int>(absl::StatusCode::kUnavailable) == grpc::StatusCode::UNAVAILABLE);
static_assert(static_cast<int>(absl::StatusCode::kUnauthenticated) ==
              grpc::StatusCode::UNAUTHENTICATED);

}  // namespace

v1::Variant ToProto(const Variant& variant) {
  v1::Variant proto;
  proto.set_name(variant.name);
  proto.set_params_digest(variant.params_digest);
  return proto;
}

v1::ObjectKey ToProto(const ObjectKey& key) {
  v1::ObjectKey proto;
  proto.set_kind(static_cast<v1::ObjectKind>(key.kind));
  proto.set_id(key.id.bytes.data(), key.id.bytes.size());
  *proto.mutable_variant() = ToProto(key.variant);
  return proto;
}

absl::StatusOr<Variant> FromProto(const v1::Variant& variant) {
  const std::string& name = variant.name();
  if (name.empty() || name.size() > kMaxVariantNameBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("variant.name has ", name.size(), " bytes, not in 1..", kMaxVariantNameBytes));
  }
  for (const char c : name) {
    if (!IsVariantNameByte(c)) {
      return absl::InvalidArgumentError(
          absl::StrCat("variant.name has byte ", static_cast<int>(static_cast<unsigned char>(c)),
                       ", not in [a-z0-9_-]"));
    }
  }
  return Variant{.name = name, .params_digest = variant.params_digest()};
}

absl::StatusOr<ObjectKey> FromProto(const v1::ObjectKey& key) {
  if (key.kind() != v1::OBJECT_KIND_BLOCK && key.kind() != v1::OBJECT_KIND_WINDOW &&
      key.kind() != v1::OBJECT_KIND_TABLE) {
    return absl::InvalidArgumentError(
        absl::StrCat("kind ", static_cast<int>(key.kind()), " not in {1, 2, 3}"));
  }
  ObjectKey result;
  result.kind = static_cast<ObjectKind>(key.kind());
  if (key.id().size() != result.id.bytes.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("id has ", key.id().size(), " bytes, not ", result.id.bytes.size()));
  }
  std::copy(key.id().begin(), key.id().end(), result.id.bytes.begin());
  PKV_ASSIGN_OR_RETURN(result.variant, FromProto(key.variant()));
  return result;
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const int code = static_cast<int>(status.error_code());
  const bool known = code > 0 && code <= static_cast<int>(absl::StatusCode::kUnauthenticated);
  return absl::Status(known ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown,
                      status.error_message());
}

}  // namespace pkv
