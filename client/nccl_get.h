#ifndef PKV_CLIENT_NCCL_GET_H_
#define PKV_CLIENT_NCCL_GET_H_

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "client/client_core.h"
#include "client/device_scratch.h"
#include "client/nccl_link.h"
#include "client/object_check.h"
#include "proto/base/sync.h"

namespace pkv {

// GetStream whose frames come to device memory, over a link's pair: received by a thread of its
// own, layer after layer, into the places that the caller named. The transfer begins with the
// manifest: its first groups are in the pair's staging when the places are named. A prefill worker
// that is said to have them is asked first, then the client's server. With Transport::kAuto what
// NCCL does not bring comes over gRPC from that server, from the first missing layer on.
class NcclGet final : public GetStream {
 public:
  // shared_ptr: a stream may outlive the client that started it. REQUIRES: core->nccl.
  // The call is counted in `record`. `direct`: null: none.
  NcclGet(std::shared_ptr<ClientCore> core, std::vector<ObjectKey> keys, absl::Time deadline,
          CallRecord record, std::shared_ptr<DirectPeer> direct = nullptr);
  // As ReleasePlaces.
  ~NcclGet() override;

  absl::Status WaitForManifest() override;
  void PlaceFrames(std::span<std::byte* const> places) override;
  absl::Status ReleasePlaces() override;
  absl::Status WaitForLayer(int layer) override;
  absl::Status WaitForAll() override;
  int num_objects() const override { return static_cast<int>(keys_.size()); }
  const ObjectHeader& header(int object_index) const override;
  bool is_on_device(int layer) const override;
  std::span<const std::byte> frame(int object_index, int layer) const override;
  // REQUIRES besides: no layer is on the device.
  AlignedBuffer TakeObject(int object_index) override;
  absl::Status CheckHeld() override;
  uint64_t received_bytes() const override ABSL_LOCKS_EXCLUDED(mu_);
  void Cancel() override ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // Has the server hold the objects, or goes over to gRPC. OK: either is done, see inner_.
  absl::Status Begin();
  absl::Status TryToFetch();
  absl::Status TryDirect();
  bool IsOurCancel(const absl::Status& status) const {
    return cancelled_ && absl::IsCancelled(status);
  }
  // Lets go of the prefill worker.
  void LeaveDirect() ABSL_LOCKS_EXCLUDED(mu_);
  // Waits so long for the link to be made, and for other gets to have had their turn.
  absl::Status FetchOver(NcclDialer& dialer, absl::Duration link_patience,
                         absl::Duration turn_patience);
  absl::Status ReadManifest(v1::PairManifest manifest);
  // Keeps the headers that the first attempt brings.
  //   Aborted  gRPC brings others
  absl::Status KeepHeaders();
  // After a failure: OK when the rest is to come over gRPC.
  absl::Status RecoverFrom(const absl::Status& status);
  void GoOver();
  absl::Status Place(std::span<std::byte* const> places);
  void StartTransfer(std::unique_ptr<NcclLink::Turn> turn);
  // The thread.
  void RunTransfer(std::unique_ptr<NcclLink::Turn> turn) ABSL_LOCKS_EXCLUDED(mu_);
  struct LayerLists;
  // On the thread.
  //   Cancelled  there are no places
  absl::StatusOr<LayerSpans> ListLayer(int layer, LayerLists& lists) ABSL_LOCKS_EXCLUDED(mu_);
  // Places are named; or nobody is going to name any.
  bool is_placed() const ABSL_LOCKS_EXCLUDED(mu_);
  bool is_settled() const ABSL_LOCKS_EXCLUDED(mu_);
  // Until `layer` is here: true; false: the transfer has ended without it, as `status` says.
  bool AwaitLayer(int layer, absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  // What the log says of a transfer that ended, and how long each part took. `first`, `last`: those
  // layers were here.
  void LogTransfer(absl::Time first, absl::Time last, uint64_t bytes) const;
  absl::Status Fail(const absl::Status& status);

  int num_layers() const { return static_cast<int>(heads_.front().frame_crcs.size()); }
  std::byte* place(int object_index, int layer) const {
    return places_[static_cast<size_t>(object_index) * num_layers() + layer];
  }

  // Constant after construction.
  const std::shared_ptr<ClientCore> core_;
  const std::vector<ObjectKey> keys_;
  const absl::Time deadline_;

  // Touched by the owner's thread alone, and constant while a transfer runs.
  absl::Status failure_;
  CallRecord record_;  // until gRPC takes over
  // shared_ptr: kept while the link, which uses its connection, is. Null once it does not bring the
  // frames.
  std::shared_ptr<DirectPeer> direct_;
  // shared_ptr: the client's, and kept while this may use it: the transfer's thread does.
  std::shared_ptr<NcclLink> link_;
  absl::Time asked_at_, answered_at_;  // the manifest; its frames come from then on
  absl::Time read_at_, placed_at_;     // it was read; places were named
  std::vector<ObjectHead> heads_;
  std::vector<std::string> head_bytes_;  // as received
  std::vector<ObjectHeader> headers_;    // constant once there
  int most_layers_ = 0;                  // of them; over the pair, of each
  std::unique_ptr<DeviceScratch::Piece> scratch_;
  std::vector<std::byte*> places_;  // [num_objects][num_layers]
  std::thread thread_;
  bool has_turn_ = false;  // of the link that was tried last, whatever came of it
  bool has_placed_ = false;
  bool has_inner_headers_ = false;

  std::atomic<bool> cancelled_{false};

  mutable Mutex mu_;
  CondVar changed_;
  bool is_placed_ ABSL_GUARDED_BY(mu_) = false;    // places_ are named
  bool is_unwanted_ ABSL_GUARDED_BY(mu_) = false;  // they never will be
  int num_layers_here_ ABSL_GUARDED_BY(mu_) = 0;   // on the device, verified
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status end_ ABSL_GUARDED_BY(mu_);
  // Set by the owner's thread, which alone reads it without the lock.
  std::unique_ptr<GetStream> inner_;  // once it has gone over to gRPC
};

}  // namespace pkv

#endif  // PKV_CLIENT_NCCL_GET_H_
