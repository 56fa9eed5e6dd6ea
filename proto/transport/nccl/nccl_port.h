#ifndef PKV_PROTO_TRANSPORT_NCCL_NCCL_PORT_H_
#define PKV_PROTO_TRANSPORT_NCCL_NCCL_PORT_H_

#include <array>
#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "proto/transport/nccl/pair_calls.h"

namespace pkv {

// What a process can do.
struct NcclCapability {
  int nccl_version = 0;  // NcclVersion()
  std::array<std::byte, 16> device_uuid = {};

  friend bool operator==(const NcclCapability&, const NcclCapability&) = default;
};

// One GPU of this process, for pairs. Immutable.
struct NcclPort {
  // shared_ptr: as NcclPair wants it.
  std::shared_ptr<PairCalls> calls;
  NcclCapability capability;
};

// Statuses of MakePairCalls; names the device.
absl::StatusOr<NcclPort> OpenNcclPort(int device);

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_NCCL_NCCL_PORT_H_
