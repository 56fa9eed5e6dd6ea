#ifndef PKV_PROTO_TRANSPORT_NCCL_NCCL_PAIR_H_
#define PKV_PROTO_TRANSPORT_NCCL_NCCL_PAIR_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/base/clock.h"
#include "proto/base/sync.h"
#include "proto/transport/nccl/pair_calls.h"
#include "proto/transport/nccl/pair_slot.h"
#include "proto/transport/nccl/transfer_plan.h"

namespace pkv {

// Both ends of a pair have equal ones (nccl_offer.h).
struct NcclPairOptions {
  // Bytes of one send, a multiple of 16. Three staging buffers of it stand in device memory.
  uint64_t group_bytes = uint64_t{64} << 20;
  absl::Duration open_timeout = absl::Seconds(20);
  absl::Duration close_timeout = absl::Seconds(1);
  // For NCCL to abort a communicator, its kernels to end, memory to be freed: each. What NCCL or
  // CUDA have not done by then they do later, on a thread of their own.
  absl::Duration abort_timeout = absl::Milliseconds(250);
};

struct TransferLimits {
  absl::Duration timeout = absl::Seconds(30);  // of the whole call
  // Without a group having arrived. Counts from the call, so it covers a peer that calls late.
  absl::Duration stall_timeout = absl::Seconds(1);
};

// One communicator of two processes, each with a GPU of its own, for pages that go from device
// memory to device memory.
//
//   idle -- Open --> open -- Send, Receive --> open -- Close --> closed
//             |        |
//             +--------+-- an error, a bound passed, PeerGone --> broken
//
// Every call returns within its bound plus three times abort_timeout (for NCCL to abort, kernels to
// end, memory to be freed), whatever the other end and NCCL do. When a call breaks the pair, the
// communicator is aborted, its kernels have ended before the call returns, and nothing is written
// to the caller's spans any more; what they hold is unspecified. A broken or closed pair is of no
// more use: make another, with a fresh id, or go on by gRPC.
//
//   Unavailable         PeerGone was called, or NCCL says that the other end is gone
//   DeadlineExceeded    a bound passed
//   FailedPrecondition  not in the state that the call needs; the ends' options differ; both ends
//                       are on one GPU
//   InvalidArgument     spans (TransferPlan), or checksums missing; the pair stays open
//   DataLoss            Receive: a checksum differs, or a number breaks its rule; the pair stays
//                       open. When a sender aborts, its
//                       kernels may end a receive with bytes that it never sent, and NCCL finds
//                       nothing wrong: hence every receive is compared.
//   Internal            CUDA or NCCL failed, or kernels go on after an abort: spans may still be
//                       written to. Drain and exit.
//
// The two ends' calls match one to one: a Send of one is a Receive of the other with equal total
// bytes, in equal order. Sizes and checksums come over the control connection before.
// Thread-compatible; PeerGone may be called from any thread at any time.
class NcclPair {
 public:
  // `layer_index` in the call's layers; OK, or DataLoss naming the layer and its first span that
  // differs.
  using LayerDone = std::function<void(size_t layer_index, const absl::Status& status)>;

  // `calls` is shared, because NCCL may free an aborted communicator long after: it waits for the
  // peer's process to let go of it too. `clock` outlives the pair.
  NcclPair(std::shared_ptr<PairCalls> calls, const NcclPairOptions& options, Clock* clock);
  // Aborts what is open.
  ~NcclPair();
  NcclPair(const NcclPair&) = delete;
  NcclPair& operator=(const NcclPair&) = delete;

  // Joins the other end, which does the same with the other rank (0 or 1), and exchanges a message
  // both ways, so that connections stand when the first layer comes. ResourceExhausted: no memory
  // for staging.
  absl::Status Open(const NcclUniqueId& id, int rank);

  // Returns when everything has left the spans; whether it arrived only the receiver knows.
  absl::Status Send(std::span<const LayerSpans> layers, const TransferLimits& limits);

  // Returns when everything is in the spans and compared. `layer_done` is called on this thread, in
  // the order of layers, each as soon as its bytes are in place; may be null.
  absl::Status Receive(std::span<const LayerSpans> layers, const TransferLimits& limits,
                       const LayerDone& layer_done);
  // The same of layers that are made as they are needed: the first three groups come to staging
  // meanwhile. When `source` fails, the rest comes and is dropped: its status, and the pair stays
  // open. When is_known has nothing to say for stall_timeout, the pair breaks. REQUIRES: checksums
  // of every layer; total_bytes not 0, a multiple of 16.
  absl::Status Receive(const LayerSource& source, const TransferLimits& limits,
                       const LayerDone& layer_done);

  // Has the first group come to staging, before anything but the total is known: the next call is
  // Receive, of as many bytes (InvalidArgument of other ones breaks the pair). REQUIRES:
  // total_bytes as there.
  absl::Status BeginReceive(uint64_t total_bytes);

  // The first span that the last Receive found damaged; none: it found none.
  struct BadSpan {
    size_t layer_index = 0, span_index = 0;
  };
  const std::optional<BadSpan>& bad_span() const { return bad_span_; }

  // CRC-32C of spans of this end, taken by the GPU: what a sender tells the receiver beforehand.
  // Needs an open pair; the other end has no part in it.
  absl::StatusOr<std::vector<uint32_t>> Checksum(const LayerSpans& layer,
                                                 const TransferLimits& limits);

  // Ends the pair when both ends have nothing left to do; the other end closes too.
  absl::Status Close();

  // The control connection says that the other end is gone: the call in progress, or the next, ends
  // with Unavailable.
  void PeerGone(absl::string_view reason);

 private:
  enum class State { kIdle, kOpen, kBroken, kClosed };
  struct Bound;
  struct Progress;

  absl::Status RequireState(State state, absl::string_view call) const;
  absl::Status PeerGoneStatus();
  // Until done() is true; errors of done, of the communicator, of the bound, of the peer.
  absl::Status Await(const Bound& bound, absl::string_view what,
                     const std::function<absl::StatusOr<bool>()>& done);
  absl::Status AwaitReady(const Bound& bound, absl::string_view what);
  void Pause(int num_polls);

  absl::Status Connect(const NcclUniqueId& id, int rank);
  absl::Status Exchange(int rank, const Bound& bound);
  absl::Status Run(Progress& progress);
  absl::Status RunSend(Progress& progress);
  absl::Status RunReceive(Progress& progress);
  absl::Status RunChecksum(Progress& progress);
  // Finishes groups until the slot of `group_index` is free.
  absl::Status FreeSlotOf(Progress& progress, size_t group_index);
  absl::Status FinishGroup(Progress& progress);
  absl::Status FinishWhatPassed(Progress& progress);
  absl::Status PrepareSend(Progress& progress, size_t group_index);
  absl::Status BeginSend(Progress& progress, size_t group_index);
  absl::Status PostReceive(size_t group_index, uint64_t bytes);
  absl::Status AwaitPlaces(Progress& progress);
  absl::Status FillReceive(Progress& progress, size_t group_index);
  absl::Status LaunchReceive(Progress& progress, size_t group_index);
  absl::Status WaitForLayers(const TransferGroup& group, void* stream);
  void AddDigests(Progress& progress, const TransferGroup& group, const PairSlot& slot);
  // layer_done, of layers below.
  void TellUntil(Progress& progress, uint32_t end_layer);
  // What a span whose last piece is there should be.
  void Compare(Progress& progress, const TransferGroup::Piece& last, uint32_t digest,
               uint32_t flag);
  // `status`, or Internal when kernels do not end.
  absl::Status Break(absl::Status status);
  absl::Status AwaitIdleStreams();
  // Streams and slots. REQUIRES: the streams are idle.
  void Release();

  // Constant after construction.
  const std::shared_ptr<PairCalls> calls_;
  const NcclPairOptions options_;
  Clock* const clock_;

  State state_ = State::kIdle;
  void* comm_ = nullptr;
  void* comm_stream_ = nullptr;  // sends and receives
  void* copy_stream_ = nullptr;  // gathering, scattering, digests
  uint64_t begun_bytes_ = 0;     // of a transfer whose first group is posted; 0: none
  std::vector<PairSlot> slots_;  // of groups in flight, in turn: group g has slot g % kSlots
  DigestItemCutter cutter_;
  std::optional<BadSpan> bad_span_;

  std::atomic<bool> is_peer_gone_ = false;
  Mutex mu_;
  CondVar peer_gone_;
  std::string peer_gone_reason_ ABSL_GUARDED_BY(mu_);
};

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_NCCL_NCCL_PAIR_H_
