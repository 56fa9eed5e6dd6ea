#include "proto/transport/nccl/nccl_port.h"

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

absl::StatusOr<NcclPort> Open(int device) {
  NcclPort port;
  PKV_ASSIGN_OR_RETURN(port.calls, MakePairCalls(device));
  PKV_ASSIGN_OR_RETURN(port.capability.device_uuid, DeviceUuid(device));
  port.capability.nccl_version = NcclVersion();
  return port;
}

}  // namespace

absl::StatusOr<NcclPort> OpenNcclPort(int device) {
  absl::StatusOr<NcclPort> port = Open(device);
  if (port.ok()) return port;
  return absl::Status(port.status().code(),
                      absl::StrCat("NCCL on device ", device, ": ", port.status().message()));
}

}  // namespace pkv
