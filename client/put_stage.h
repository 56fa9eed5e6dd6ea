#ifndef PKV_CLIENT_PUT_STAGE_H_
#define PKV_CLIENT_PUT_STAGE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/client_core.h"
#include "client/shm_link.h"

namespace pkv {

// Where the payload of one put over shm stands until the server has copied it: a window of the
// stage that the server lends, cut into slots that messages fill in turn.
//
//   | slot 0: message 0, 2, ... | slot 1: message 1, 3, ... |
//
// Two, of 2 MiB: one is filled while the other is emptied. A message costs both ends some 100 us of
// processor time beside its bytes, as much as copying 1 MiB; with four slots of 1 MiB a put took a
// fifth more of it.
//
// Thread-compatible.
class PutStage {
 public:
  static constexpr int kNumSlots = 2;

  // A window for a put that begins now, negotiated as gets are (ShmDialer). With Transport::kAuto
  // it is not waited for long.
  //   FailedPrecondition, Unavailable, ...  as ShmDialer::Link
  //   ResourceExhausted                     likewise; or as many puts of this client are under way
  //                                         as a stage has windows for
  static absl::StatusOr<std::unique_ptr<PutStage>> Open(ClientCore& core, absl::Time deadline);

  // For PutBegin.
  const std::string& token() const { return link_->stage_token(); }
  // The slot of the next message, and where in the stage it begins. To be filled once the server
  // has taken what stood there, kNumSlots messages ago.
  std::span<std::byte> slot() const;
  uint64_t slot_offset() const;
  void NextSlot() { slot_index_ = (slot_index_ + 1) % kNumSlots; }

  // The server may still read from the window when this goes, or does not know the stage: the next
  // put has another one.
  void Retire() { window_->Retire(); }

 private:
  PutStage(std::shared_ptr<ShmLink> link, std::unique_ptr<ShmLink::Window> window)
      : link_(std::move(link)), window_(std::move(window)) {}

  // shared_ptr: of the dialer, and of every put that uses its stage.
  const std::shared_ptr<ShmLink> link_;
  const std::unique_ptr<ShmLink::Window> window_;  // of the link
  int slot_index_ = 0;
};

}  // namespace pkv

#endif  // PKV_CLIENT_PUT_STAGE_H_
