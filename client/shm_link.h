#ifndef PKV_CLIENT_SHM_LINK_H_
#define PKV_CLIENT_SHM_LINK_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "pkv/block/object_key.h"
#include "pkv/v1/handoff.pb.h"
#include "proto/base/clock.h"
#include "proto/base/sync.h"
#include "proto/transport/local_socket.h"
#include "proto/transport/shm_frame.h"

namespace pkv {

enum class ShmUse { kGets, kPuts };

// What one put may take of a stage.
inline constexpr uint64_t kShmWindowBytes = uint64_t{4} << 20;

// One connection of the shm transport (handoff.proto). Of gets: a server's arena, mapped for
// reading, and the socket over which objects in it are pinned. Of puts: a stage of this client's,
// mapped for writing, cut into windows, one for each put under way; the socket says no more than
// that it is wanted. A thread of its own receives answers and renews.
//
// A link that broke stays broken; the memory stays mapped until the link is destroyed.
//
// Thread-safe.
class ShmLink {
 public:
  // Connects and maps.
  //   Unavailable         nobody listens there, the server there is another one, or does not answer
  //                       in `timeout`
  //   ResourceExhausted   it has no stage left
  //   FailedPrecondition  it does not know puts over shm
  //   DataLoss            what it answers or passes along is not what it should be
  static absl::StatusOr<std::shared_ptr<ShmLink>> Connect(const v1::ShmOffer& offer, ShmUse use,
                                                          absl::Duration timeout, Clock* clock);
  ~ShmLink();
  ShmLink(const ShmLink&) = delete;
  ShmLink& operator=(const ShmLink&) = delete;

  // Objects that stay in place until this goes. Must not outlive what it was made from: keep the
  // link.
  class Pin {
   public:
    Pin(ShmLink* link, uint64_t id) : link_(link), id_(id) {}
    ~Pin() { link_->Unpin(id_); }
    Pin(const Pin&) = delete;
    Pin& operator=(const Pin&) = delete;

    // One per key, in order; those whose code is 0 lie inside the arena.
    std::vector<v1::ShmExtent> extents;

    // Has the server look at an object whose checksum was wrong. Once for each.
    void ReportDamage(int object_index) { link_->ReportDamage(id_, object_index); }

   private:
    ShmLink* const link_;
    const uint64_t id_;
  };

  // Part of the stage, of one put until this goes. Must not outlive what it was made from.
  class Window {
   public:
    Window(ShmLink* link, int index) : link_(link), index_(index) {}
    ~Window() {
      if (!is_retired_) link_->ReturnWindow(index_);
    }
    Window(const Window&) = delete;
    Window& operator=(const Window&) = delete;

    std::span<std::byte> bytes() const { return link_->memory_.subspan(offset(), kShmWindowBytes); }
    uint64_t offset() const { return index_ * kShmWindowBytes; }  // in the stage
    // Nobody gets it after this: the server may still read there, and would take what another put
    // writes for damage. The link breaks, so that there is another stage for the next put; those
    // under way go on in this one.
    void Retire() {
      is_retired_ = true;
      link_->Break();
    }

   private:
    ShmLink* const link_;
    const int index_;
    bool is_retired_ = false;
  };

  // Of a link of puts. ResourceExhausted: all are in use.
  absl::StatusOr<std::unique_ptr<Window>> TakeWindow() ABSL_LOCKS_EXCLUDED(mu_);
  const std::string& stage_token() const { return stage_token_; }

  // Of a link of gets. Waits for the server's answer, until `deadline`, or until `*cancelled` and
  // Wake().
  //   Unavailable, DeadlineExceeded, Cancelled
  //   DataLoss           the answer makes no sense
  //   others             as the server said; ResourceExhausted: a limit of this connection
  absl::StatusOr<std::unique_ptr<Pin>> PinObjects(std::span<const ObjectKey> keys,
                                                  absl::Time deadline,
                                                  const std::atomic<bool>& cancelled);
  void Wake();

  std::span<const std::byte> arena() const { return memory_; }

  // OK: whatever is pinned over this link has been in place until now. That is so as long as the
  // server has not shut the connection down, which it does before it gives anything up, and also
  // when its process has ended: nobody but it can write to the arena.
  //   Aborted  the server took its memory back
  absl::Status CheckHeld();

  // Whether the connection stands and the server is not late with an answer.
  bool usable() const ABSL_LOCKS_EXCLUDED(mu_);
  bool broken() const { return IsHungUp(socket_.get()); }

 private:
  // A question on its way.
  struct Pending {
    bool abandoned = false;  // nobody waits any more: unpin what comes
    bool answered = false;
    v1::ShmPinned answer;
  };

  ShmLink(FileDescriptor socket, Clock* clock);
  absl::StatusOr<v1::ShmWelcome> Greet(const v1::ShmOffer& offer, ShmUse use,
                                       absl::Duration timeout);
  absl::Status Map(uint64_t bytes, int protection);
  absl::Status MapStage(const v1::ShmWelcome& welcome);
  void WatchServer();

  void Unpin(uint64_t pin_id);
  void ReturnWindow(int index) ABSL_LOCKS_EXCLUDED(mu_);
  void ReportDamage(uint64_t pin_id, int object_index);
  // A message that cannot be sent in time breaks the link.
  absl::Status Send(const v1::ShmMessage& message) ABSL_LOCKS_EXCLUDED(send_mu_);
  void Break();

  // The thread.
  void Run(absl::Duration renew_every);
  bool Receive();
  absl::Status OnMessage(const v1::ShmMessage& message);

  absl::Status CheckExtents(const v1::ShmPinned& answer, size_t num_keys) const;

  // Constant after Connect().
  const FileDescriptor socket_;
  Clock* const clock_;
  FileDescriptor server_process_;  // a pidfd; none when the server's process cannot be watched
  std::span<std::byte> memory_;    // of gets the arena, not to be written to; of puts the stage
  std::string stage_token_;
  std::thread thread_;

  // The thread's own, and Connect()'s before it starts.
  ShmFrameReader reader_;
  FileDescriptor received_fd_;

  // Found out by CheckHeld() once the connection was down.
  std::atomic<bool> server_ended_{false};
  std::atomic<bool> is_lost_{false};

  // Keeps messages whole. Held while the socket takes one, kSendTimeout at most.
  Mutex send_mu_;

  mutable Mutex mu_;
  CondVar changed_;
  std::map<uint64_t, Pending> pending_ ABSL_GUARDED_BY(mu_);
  std::vector<bool> is_window_taken_ ABSL_GUARDED_BY(mu_);  // of puts
  uint64_t next_pin_id_ ABSL_GUARDED_BY(mu_) = 1;
  int num_abandoned_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;  // the thread has ended
};

}  // namespace pkv

#endif  // PKV_CLIENT_SHM_LINK_H_
