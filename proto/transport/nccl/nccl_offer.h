#ifndef PKV_PROTO_TRANSPORT_NCCL_NCCL_OFFER_H_
#define PKV_PROTO_TRANSPORT_NCCL_NCCL_OFFER_H_

// The messages by which two processes agree on a pair (pkv/v1/nccl_handoff.proto), checked.

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/v1/nccl_handoff.pb.h"
#include "proto/transport/nccl/nccl_port.h"

namespace pkv {

// What one end proposes and the other joins.
struct NcclOffer {
  NcclUniqueId id = {};
  int rank = 0;  // of whoever receives the offer; the sender has the other
  NcclCapability sender = {};
  uint64_t group_bytes = 0;
};

// Whether two ends can form a pair. FailedPrecondition: an end has no NCCL, the versions differ, or
// both are on one GPU: NCCL refuses either.
absl::Status CheckCapabilities(const NcclCapability& ours, const NcclCapability& theirs);

v1::NcclCapability ToProto(const NcclCapability& capability);
v1::NcclOffer ToProto(const NcclOffer& offer);
// InvalidArgument names the field: a UUID that is not 16 bytes, an id not 128, a rank that is not 0
// or 1, groups that are no multiple of 16 bytes in [1 MiB, 1 GiB].
absl::StatusOr<NcclCapability> FromProto(const v1::NcclCapability& message);
absl::StatusOr<NcclOffer> FromProto(const v1::NcclOffer& message);

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_NCCL_NCCL_OFFER_H_
