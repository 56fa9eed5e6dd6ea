#include "proto/transport/nccl/pair_calls.h"

// What stands here in a build without NCCL or CUDA; with both it is pair_calls_cuda.cc.

namespace pkv {
namespace {

absl::Status NotBuilt() { return absl::UnimplementedError("built without NCCL"); }

}  // namespace

absl::StatusOr<std::shared_ptr<PairCalls>> MakePairCalls(int, const PairCallsOptions&) {
  return NotBuilt();
}

absl::StatusOr<std::array<std::byte, 16>> DeviceUuid(int) { return NotBuilt(); }

int NcclVersion() { return 0; }

}  // namespace pkv
