#ifndef PKV_WORKER_CTL_WORKER_CLIENT_H_
#define PKV_WORKER_CTL_WORKER_CLIENT_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "pkv/v1/worker_service.pb.h"

namespace pkv {

// What a generation gave.
struct Generation {
  v1::PrefillResponse prefill;
  std::vector<int32_t> token_ids;
  std::string text;
  v1::DecodeStats decode;
};

// Drives one prefill and one decode worker.
// Thread-safe.
class WorkerClient {
 public:
  WorkerClient(const std::string& prefill_address, const std::string& decode_address,
               absl::Duration deadline);
  ~WorkerClient();

  // Errors of the workers; Unavailable and DeadlineExceeded as the SDK.
  absl::StatusOr<v1::PrefillResponse> Prefill(const v1::PrefillRequest& request);
  // Calls `on_event` for each event, from this thread.
  absl::Status Decode(const v1::DecodeRequest& request,
                      const std::function<void(const v1::DecodeEvent&)>& on_event);
  // Prefill, then decode of its ticket. `decode.ticket` is filled in; `on_text` gets the text as it
  // comes and may be null.
  absl::StatusOr<Generation> Generate(const v1::PrefillRequest& prefill, v1::DecodeRequest decode,
                                      const std::function<void(const std::string&)>& on_text);

 private:
  struct Stubs;
  std::unique_ptr<Stubs> stubs_;
  absl::Duration deadline_;
};

}  // namespace pkv

#endif  // PKV_WORKER_CTL_WORKER_CLIENT_H_
