#ifndef PKV_CLIENT_NCCL_DIALER_H_
#define PKV_CLIENT_NCCL_DIALER_H_

#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/connection.h"
#include "client/nccl_link.h"
#include "proto/base/clock.h"
#include "proto/base/sync.h"

namespace pkv {

// How long an answer to a negotiation stands before it is asked again. A failure's doubles with
// each: one may cost the server a thread (proto/transport/nccl/README.md, "Limits"). A link that
// breaks before it has stood for the longest of these is a failure too.
inline constexpr absl::Duration kNcclRefusalLasts = absl::Seconds(30);
inline constexpr absl::Duration kNcclFailureLasts = absl::Seconds(1);
inline constexpr absl::Duration kNcclFailureLastsMax = absl::Minutes(5);

// Keeps one link of the nccl transport to a server, negotiated over gRPC (Handoff.Open), on a
// thread of its own, when it is first wanted and again when it broke.
//
// Thread-safe.
class NcclDialer {
 public:
  // `connection` and `clock` outlive this.
  NcclDialer(Connection* connection, const NcclPort& port, Clock* clock)
      : connection_(connection), port_(port), clock_(clock) {}
  // Waits for a negotiation under way.
  ~NcclDialer();
  NcclDialer(const NcclDialer&) = delete;
  NcclDialer& operator=(const NcclDialer&) = delete;

  // The link. Without one: starts to make it, unless the last answer stands, and waits for it until
  // `deadline`, which may have passed.
  //   FailedPrecondition  the server offers no nccl to us: no GPU, another NCCL, too old
  //   DeadlineExceeded    it is being made
  //   others              it could not be made, or broke soon
  absl::StatusOr<std::shared_ptr<NcclLink>> Link(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);

  // The link, if it broke and nobody has asked for one since; null: it did not. Its staging is
  // device memory, which goes with the last reference; that may take an abort's time.
  std::shared_ptr<NcclLink> TakeBroken() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void StartDialling() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<std::shared_ptr<NcclLink>> Dial();
  void Keep(const absl::StatusOr<std::shared_ptr<NcclLink>>& link) ABSL_LOCKS_EXCLUDED(mu_);
  // Takes the link. REQUIRES: there is one, and it is broken.
  std::shared_ptr<NcclLink> Take() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Keeps `error` as the answer for its time.
  void NoteError(const absl::Status& error) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  Connection* const connection_;
  const NcclPort port_;
  Clock* const clock_;

  Mutex mu_;
  CondVar dialled_;
  bool dialling_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_ ABSL_GUARDED_BY(mu_);
  // shared_ptr: gets keep the link that they receive over.
  std::shared_ptr<NcclLink> link_ ABSL_GUARDED_BY(mu_);
  absl::Time made_at_ ABSL_GUARDED_BY(mu_);  // the link
  absl::Status last_error_ ABSL_GUARDED_BY(mu_);
  std::string last_refusal_ ABSL_GUARDED_BY(mu_);
  absl::Time error_until_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  absl::Duration failure_lasts_ ABSL_GUARDED_BY(mu_) = kNcclFailureLasts;
};

}  // namespace pkv

#endif  // PKV_CLIENT_NCCL_DIALER_H_
