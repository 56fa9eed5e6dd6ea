#ifndef PKV_PROTO_TRANSPORT_NCCL_PAIR_SLOT_H_
#define PKV_PROTO_TRANSPORT_NCCL_PAIR_SLOT_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "proto/transport/nccl/pair_calls.h"
#include "proto/transport/nccl/transfer_plan.h"

namespace pkv {

// What one group in flight needs: a staging buffer, the lists that kernels read, digests, events.
//
// Lists of one group, in pinned memory and, at the same offsets, in device memory:
//
//   copy items | digest items | check items | rules | digests (seeds) | flags (zeros)
//
// where digests and flags, one each for a span that ends in the group, are results on the host
// later.
//
// REQUIRES: nothing of the GPU uses the slot when it is filled or freed. Thread-compatible.
class PairSlot {
 public:
  // Statuses of PairCalls.
  absl::Status Allocate(PairCalls& calls, uint64_t group_bytes);
  void Free(PairCalls& calls);

  // The most bytes that lists of `group` take.
  static uint64_t ListBytes(const TransferPlan::Group& group);
  // Makes room for lists of `bytes`. Freeing waits for whatever the GPU does, so this is called
  // while no pair of the process waits for its peer on the device.
  absl::Status Reserve(PairCalls& calls, uint64_t bytes);

  // Lists that copy pieces of `group` to (`gather`) or from staging, and take digests of the spans
  // that end in it and check their numbers, where they have rules; `with_copies` and `with_digests`
  // say which. REQUIRES: room for them.
  void Fill(const TransferPlan::Group& group, bool gather, bool with_copies, bool with_digests,
            DigestItemCutter& cutter);
  // Brings the lists to the device and starts the kernels on `stream`, copies first; digests come
  // back to the host after them.
  absl::Status Launch(PairCalls& calls, void* stream);

  // One for each span that ends in the group, once the stream has passed Launch. A flag that is not
  // 0: its numbers break its rules.
  std::span<const uint32_t> digests() const;
  std::span<const uint32_t> flags() const;

  std::byte* staging() const { return staging_; }
  std::byte* host() const { return host_; }     // pinned, 4 KiB at least; Fill writes it
  void* copied() const { return copied_; }      // lists and copies are through
  void* received() const { return received_; }  // bytes stand in staging
  void* done() const { return done_; }          // the group is through

 private:
  std::byte* staging_ = nullptr;
  std::byte* host_ = nullptr;
  std::byte* device_ = nullptr;
  uint64_t reserved_bytes_ = 0;  // of host_ and device_ each
  void* copied_ = nullptr;
  void* received_ = nullptr;
  void* done_ = nullptr;

  // Of the group that fills the slot.
  std::vector<CopyItem> copies_;
  std::vector<DigestItem> items_;
  std::vector<CheckItem> checks_;
  std::vector<FrameRules> rules_;
  std::vector<uint32_t> seeds_;
  uint64_t results_at_ = 0;  // where digests begin in the lists
};

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_NCCL_PAIR_SLOT_H_
