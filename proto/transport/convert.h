#ifndef PKV_PROTO_TRANSPORT_CONVERT_H_
#define PKV_PROTO_TRANSPORT_CONVERT_H_

// Between our types and those of the wire.

#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/block/object_key.h"
#include "pkv/v1/object.pb.h"

namespace pkv {

v1::ObjectKey ToProto(const ObjectKey& key);
v1::Variant ToProto(const Variant& variant);
// InvalidArgument names the field: unspecified kind, id not 32 bytes, variant name not 1..15 of
// [a-z0-9_-].
absl::StatusOr<ObjectKey> FromProto(const v1::ObjectKey& key);
absl::StatusOr<Variant> FromProto(const v1::Variant& variant);

// Codes map one to one; messages are kept.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_CONVERT_H_
