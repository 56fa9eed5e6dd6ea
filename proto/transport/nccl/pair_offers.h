#ifndef PKV_PROTO_TRANSPORT_NCCL_PAIR_OFFERS_H_
#define PKV_PROTO_TRANSPORT_NCCL_PAIR_OFFERS_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/base/clock.h"
#include "proto/base/sync.h"

namespace pkv {

// When a server may make the unique id of another pair. Whoever reaches the port may take one and
// not join, and NCCL keeps a thread and a listening socket of each such id for ever: so offers
// whose pair did not open are followed by a pause, twice as long with each, and end for good after
// kMaxUnopened.
//
//   offer --Opened()--> no pause any more
//   offer --destroyed--> lost: pause, 1 s, 2 s, 4 s, .. 5 min
//
// Thread-safe.
class PairOffers {
 public:
  static constexpr absl::Duration kFirstPause = absl::Seconds(1);
  static constexpr absl::Duration kLongestPause = absl::Minutes(5);
  // In the life of a process; those that are being opened count until they are.
  static constexpr int kMaxUnopened = 64;

  // `clock` outlives this.
  explicit PairOffers(Clock* clock) : clock_(clock) {}
  PairOffers(const PairOffers&) = delete;
  PairOffers& operator=(const PairOffers&) = delete;

  // An id that is about to be made. Must not outlive what it is of. Thread-compatible.
  class Offer {
   public:
    explicit Offer(PairOffers* offers) : offers_(*offers) {}
    ~Offer() { offers_.End(has_opened_); }
    Offer(const Offer&) = delete;
    Offer& operator=(const Offer&) = delete;

    // Its pair has: the id left nothing behind.
    void Opened() { has_opened_ = true; }

   private:
    PairOffers& offers_;
    bool has_opened_ = false;
  };
  //   ResourceExhausted  as Check()
  absl::StatusOr<std::unique_ptr<Offer>> Begin() ABSL_LOCKS_EXCLUDED(mu_);

  // Whether Begin() would make one now.
  //   ResourceExhausted  a pause lasts, or there will be none any more. The text stays the same
  //                      while that does.
  absl::Status Check() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  absl::Status CheckLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void End(bool has_opened) ABSL_LOCKS_EXCLUDED(mu_);

  Clock* const clock_;

  mutable Mutex mu_;
  int num_opening_ ABSL_GUARDED_BY(mu_) = 0;
  int num_unopened_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Duration next_pause_ ABSL_GUARDED_BY(mu_) = kFirstPause;
  absl::Time paused_until_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
};

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_NCCL_PAIR_OFFERS_H_
