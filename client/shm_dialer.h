#ifndef PKV_CLIENT_SHM_DIALER_H_
#define PKV_CLIENT_SHM_DIALER_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/connection.h"
#include "client/shm_link.h"
#include "proto/base/clock.h"
#include "proto/base/sync.h"

namespace pkv {

// How long an answer to a negotiation stands before it is asked again.
inline constexpr absl::Duration kShmRefusalLasts = absl::Seconds(30);  // the server offers none
inline constexpr absl::Duration kShmFailureLasts = absl::Seconds(1);   // it does, and it failed

// Keeps one link of the shm transport to a server, negotiated over gRPC (Handoff.Open) when it is
// first wanted and again when it broke.
//
// Thread-safe.
class ShmDialer {
 public:
  // Both outlive this.
  ShmDialer(Connection* connection, ShmUse use, Clock* clock)
      : connection_(connection), use_(use), clock_(clock) {}

  // The link, or one negotiated now; while another thread negotiates, its result. Repeats the last
  // answer while that stands.
  //   FailedPrecondition  the server offers no shm to us, or not for this: another host, switched
  //                       off, too old
  //   ResourceExhausted   it has no stage left
  //   Unavailable, DataLoss  it does, and it did not work; or the server is away
  absl::StatusOr<std::shared_ptr<ShmLink>> Link(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);

  // False while Link() would only repeat an error.
  bool IsWorthATry() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  absl::StatusOr<std::shared_ptr<ShmLink>> Dial(absl::Duration timeout);
  // Of an offer that could not be taken: something is set up wrongly.
  void LogOnce(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);

  Connection* const connection_;
  const ShmUse use_;
  Clock* const clock_;

  Mutex mu_;
  CondVar dialled_;
  bool dialling_ ABSL_GUARDED_BY(mu_) = false;
  bool logged_ ABSL_GUARDED_BY(mu_) = false;
  // shared_ptr: streams keep the link they read over.
  std::shared_ptr<ShmLink> link_ ABSL_GUARDED_BY(mu_);
  absl::Status last_error_ ABSL_GUARDED_BY(mu_);
  absl::Time error_until_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
};

}  // namespace pkv

#endif  // PKV_CLIENT_SHM_DIALER_H_
