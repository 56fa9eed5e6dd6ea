#ifndef PKV_WORKER_DECODE_TICKET_H_
#define PKV_WORKER_DECODE_TICKET_H_

#include "absl/status/statusor.h"
#include "pkv/v1/worker_service.pb.h"
#include "worker/batch/batch_request.h"
#include "worker/serve/model_host.h"

namespace pkv {

// What a decode request asks for, checked; its callbacks are left to the caller. max_tokens is cut
// at the model's context.
//   InvalidArgument     the ticket contradicts itself, or a sampling parameter is out of its range
//   FailedPrecondition  the ticket is of another model, or of a variant that is not known here
absl::StatusOr<BatchRequest> ReadTicket(const v1::DecodeRequest& request, const ModelHost& host);

}  // namespace pkv

#endif  // PKV_WORKER_DECODE_TICKET_H_
