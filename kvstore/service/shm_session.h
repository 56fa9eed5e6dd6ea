#ifndef PKV_KVSTORE_SERVICE_SHM_SESSION_H_
#define PKV_KVSTORE_SERVICE_SHM_SESSION_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/service/service_metrics.h"
#include "kvstore/service/shm_stage.h"
#include "kvstore/store/block_store.h"
#include "kvstore/store/pager.h"
#include "pkv/v1/handoff.pb.h"
#include "proto/base/clock.h"
#include "proto/base/sync.h"

namespace pkv {

// A client that may read but not write, and may stop at any time, costs at most this.
struct ShmLimits {
  uint64_t connection_pinned_bytes = 0;  // of one connection; an object counts once for each pin
  uint64_t total_pinned_bytes = 0;       // of all
  absl::Duration silence = absl::Seconds(30);  // without a renew
  absl::Duration pin_age = absl::Hours(1);     // of one pin, renewed or not
};

inline constexpr int kMaxShmPins = 1024;         // of one connection
inline constexpr size_t kMaxShmObjects = 65536;  // pinned by one connection
inline constexpr absl::Duration kShmHelloTimeout = absl::Seconds(5);

// What the sessions of one server share. Thread-compatible: they run on one thread.
struct ShmShared {
  // Constant; what they point at outlives the sessions.
  BlockStore* store = nullptr;
  ServiceMetrics* metrics = nullptr;
  Clock* clock = nullptr;
  ShmLimits limits = {};
  std::string token = {};
  PageInSource disk = {};
  ShmStages* stages = nullptr;
  // Tells whoever runs the sessions to ask them for answers; from any thread, also when they are
  // gone.
  std::function<void()> wake = {};

  uint64_t pinned_bytes = 0;  // by all sessions; what is being brought in for pins included
};

// The server's side of one connection of the shm transport (handoff.proto), without its socket:
// what the client said and what it has pinned, or its stage. Destroying it ends its pins: only
// after the connection was shut down, so that the client knows.
//
// Thread-compatible.
class ShmSession {
 public:
  // `shared` outlives this.
  explicit ShmSession(ShmShared* shared);
  ~ShmSession();
  ShmSession(const ShmSession&) = delete;
  ShmSession& operator=(const ShmSession&) = delete;

  // The answer, when the message has one; with a welcome goes the descriptor of the stage, or of
  // the arena. An error means: shut the connection down.
  //   PermissionDenied   another server's token
  //   ResourceExhausted  no stage is left, as ShmStages::Lend
  //   InvalidArgument    out of turn, or names what is not
  absl::StatusOr<std::optional<v1::ShmMessage>> OnMessage(const v1::ShmMessage& message);

  // Null: its hello was not for puts.
  const ShmStage* stage() const { return stage_.stage.get(); }

  // Answers to pins for which the disk had to be read: since the last call. `shared->wake` tells
  // when there are some.
  std::vector<v1::ShmMessage> TakeReady();

  // When the connection is to be shut down unless something is said before, and why that would be.
  struct Expiry {
    absl::Time time;
    ShmEnd reason = ShmEnd::kSilent;
  };
  Expiry expiry() const;

  // What is being brought in from disk for a pin included.
  uint64_t pinned_bytes() const { return pinned_bytes_; }

 private:
  struct Pin {
    std::vector<Lease> leases;   // empty ones for objects that were not there
    std::vector<bool> reported;  // damaged, by the client
    uint64_t bytes = 0;
    absl::Time since;
  };

  // What the disk has brought in for one pin. shared_ptr: of the session, which may end before, and
  // of the pager.
  struct PagedIn {
    Mutex mu;
    bool is_there ABSL_GUARDED_BY(mu) = false;
    Pager::Result result ABSL_GUARDED_BY(mu);
  };
  struct Waiting {
    std::vector<ObjectKey> keys;
    uint64_t bytes = 0;  // that there will be to pin
    std::shared_ptr<PagedIn> paged_in;
  };

  absl::StatusOr<v1::ShmMessage> OnHello(const v1::ShmHello& hello);
  // Nothing: the answer comes once the disk was read.
  absl::StatusOr<std::optional<v1::ShmMessage>> OnPin(const v1::ShmPin& request);
  void AwaitDisk(uint64_t pin_id, std::vector<ObjectKey> keys, uint64_t bytes);
  v1::ShmMessage Answer(uint64_t pin_id, std::span<const ObjectKey> keys, int num_paged_in);
  v1::ShmMessage Refuse(uint64_t pin_id, const absl::Status& status);
  absl::Status OnUnpin(const v1::ShmUnpin& request);
  absl::Status OnDamaged(const v1::ShmDamaged& report);
  // Everything there is to refuse without shutting down: before anything is done, once it is known
  // what is stored, and once it is known what there is to pin.
  absl::StatusOr<std::vector<ObjectKey>> Admit(const v1::ShmPin& request) const;
  absl::Status AdmitBytes(uint64_t bytes) const;
  v1::ShmExtent Describe(Lease& lease);
  void Release(const Pin& pin);

  ShmShared* const shared_;
  bool welcomed_ = false;
  ShmStages::Lent stage_;  // empty: none
  absl::Time renewed_;
  absl::flat_hash_map<uint64_t, Pin> pins_;
  absl::flat_hash_map<uint64_t, Waiting> waiting_;  // for the disk
  size_t num_objects_ = 0;                          // of both
  uint64_t pinned_bytes_ = 0;                       // likewise
};

}  // namespace pkv

#endif  // PKV_KVSTORE_SERVICE_SHM_SESSION_H_
