#include "kvstore/service/rpc_call.h"

#include <grpc/grpc.h>

#include <algorithm>
#include <chrono>
#include <memory>

#include "proto/transport/nccl/pair_call.h"

namespace pkv {

RpcCall::RpcCall(const ServiceParts& parts, RpcMethod method)
    : metrics_(parts.metrics),
      clock_(parts.clock),
      method_(method),
      began_(clock_->MonotonicNow()) {
  metrics_->CallBegan(method_);
}

void RpcCall::End(absl::StatusCode code) {
  metrics_->CallEnded(method_, code, clock_->MonotonicNow() - began_);
}

absl::Status RequireDeadline(const ServiceParts& parts, const grpc::ServerContextBase& context) {
  const absl::Status status = CheckDeadline(context);
  if (!status.ok()) parts.metrics->Rejected(RejectReason::kNoDeadline);
  return status;
}

absl::Duration PageInPatience(const ServiceParts& parts, const grpc::ServerContextBase& context) {
  const absl::Duration left =
      absl::FromChrono(context.deadline() - std::chrono::system_clock::now());
  return std::min(parts.disk.patience, left / 2);
}

absl::Status CutOffStatus(const grpc::ServerContextBase& context) {
  if (std::chrono::system_clock::now() >= context.deadline()) {
    return absl::DeadlineExceededError("the call's deadline has passed");
  }
  return absl::CancelledError("the call was cancelled, or nothing moved on it for too long");
}

std::function<void()> MakeCancel(grpc::ServerContextBase& context) {
  // A reference of its own, shared by the copies of the function: the watchdog may call one just
  // when the call ends.
  grpc_call* call = context.c_call();
  grpc_call_ref(call);
  const std::shared_ptr<grpc_call> owned(call, [](grpc_call* last) { grpc_call_unref(last); });
  return [owned] { grpc_call_cancel(owned.get(), nullptr); };
}

}  // namespace pkv
