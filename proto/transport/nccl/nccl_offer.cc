#include "proto/transport/nccl/nccl_offer.h"

#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

constexpr uint64_t kMinGroupBytes = uint64_t{1} << 20;
// Three of them stand in device memory.
constexpr uint64_t kMaxGroupBytes = uint64_t{1} << 30;

template <size_t n>
std::string Text(const std::array<std::byte, n>& bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), n);
}

template <size_t n>
absl::Status Read(const std::string& text, const char* field, std::array<std::byte, n>& out) {
  if (text.size() != n) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " has ", text.size(), " bytes, expected ", n));
  }
  std::memcpy(out.data(), text.data(), n);
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckCapabilities(const NcclCapability& ours, const NcclCapability& theirs) {
  for (const NcclCapability* end : {&ours, &theirs}) {
    if (end->nccl_version <= 0) {
      return absl::FailedPreconditionError(
          absl::StrCat(end == &ours ? "this end" : "the peer", " has no NCCL"));
    }
  }
  // NCCL compares them when it connects and refuses what differs.
  if (ours.nccl_version != theirs.nccl_version) {
    return absl::FailedPreconditionError(
        absl::StrCat("NCCL ", ours.nccl_version, " here, ", theirs.nccl_version, " at the peer"));
  }
  if (ours.device_uuid == theirs.device_uuid) {
    return absl::FailedPreconditionError("both ends are on one GPU");
  }
  return absl::OkStatus();
}

v1::NcclCapability ToProto(const NcclCapability& capability) {
  v1::NcclCapability message;
  message.set_nccl_version(static_cast<uint32_t>(capability.nccl_version));
  message.set_device_uuid(Text(capability.device_uuid));
  return message;
}

v1::NcclOffer ToProto(const NcclOffer& offer) {
  v1::NcclOffer message;
  message.set_unique_id(Text(offer.id.bytes));
  message.set_rank(static_cast<uint32_t>(offer.rank));
  *message.mutable_sender() = ToProto(offer.sender);
  message.set_group_bytes(offer.group_bytes);
  return message;
}

absl::StatusOr<NcclCapability> FromProto(const v1::NcclCapability& message) {
  NcclCapability capability;
  capability.nccl_version = static_cast<int>(message.nccl_version());
  PKV_RETURN_IF_ERROR(Read(message.device_uuid(), "device_uuid", capability.device_uuid));
  return capability;
}

absl::StatusOr<NcclOffer> FromProto(const v1::NcclOffer& message) {
  NcclOffer offer;
  PKV_RETURN_IF_ERROR(Read(message.unique_id(), "unique_id", offer.id.bytes));
  if (message.rank() > 1) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", message.rank(), " is not 0 or 1"));
  }
  offer.rank = static_cast<int>(message.rank());
  PKV_ASSIGN_OR_RETURN(offer.sender, FromProto(message.sender()));
  offer.group_bytes = message.group_bytes();
  if (offer.group_bytes % kSpanAlignmentBytes != 0 || offer.group_bytes < kMinGroupBytes ||
      offer.group_bytes > kMaxGroupBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("group_bytes ", offer.group_bytes, " is no multiple of ", kSpanAlignmentBytes,
                     " in [", kMinGroupBytes, ", ", kMaxGroupBytes, "]"));
  }
  return offer;
}

}  // namespace pkv
