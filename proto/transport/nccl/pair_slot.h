#ifndef PKV_PROTO_TRANSPORT_NCCL_PAIR_SLOT_H_
#define PKV_PROTO_TRANSPORT_NCCL_PAIR_SLOT_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "proto/transport/nccl/pair_calls.h"
#include "proto/transport/nccl/transfer_plan.h"

namespace pkv {

// What is done with a group's bytes.
enum class SlotWork {
  kGather,   // from the spans to staging
  kScatter,  // from staging to the spans; digests of what is read on the way, numbers checked
  kDigest    // digests of the spans, numbers checked; nothing is copied
};

// What one group in flight needs: a staging buffer, the lists that kernels read, digests, events.
//
// Lists of one group, in pinned memory and, at the same offsets, in device memory:
//
//   copy items | digest items | check items | rules | digests (seeds) | flags (zeros)
//
// where digests and flags, one each for a piece of the group, are results on the host later.
//
// REQUIRES: nothing of the GPU uses the slot when it is filled or freed. Thread-compatible.
class PairSlot {
 public:
  // Statuses of PairCalls.
  absl::Status Allocate(PairCalls& calls, uint64_t group_bytes);
  void Free(PairCalls& calls);

  // Lists for `work` on the pieces of `group`. Numbers of a span are checked when its last piece is
  // there. Makes room as needed; what it had before is kept until Free, since freeing waits for
  // whatever the GPU does, in other pairs too. Statuses of PairCalls.
  absl::Status Fill(PairCalls& calls, const TransferGroup& group, SlotWork work,
                    DigestItemCutter& cutter);
  // Brings the lists to the device and starts the kernels on `stream`; digests come back to the
  // host after them.
  absl::Status Launch(PairCalls& calls, void* stream);

  // One for each piece of the group, once the stream has passed Launch: of a span's pieces they add
  // up (xor) to its CRC-32C. A flag that is not 0: the numbers of the span that ends break its
  // rules.
  std::span<const uint32_t> digests() const;
  std::span<const uint32_t> flags() const;

  std::byte* staging() const { return staging_; }
  std::byte* host() const { return lists_.host; }  // pinned, 4 KiB at least; Fill writes it
  void* copied() const { return copied_; }         // lists and copies are through
  void* received() const { return received_; }     // bytes stand in staging
  void* done() const { return done_; }             // the group is through

 private:
  struct Lists {
    std::byte* host = nullptr;
    std::byte* device = nullptr;
    uint64_t bytes = 0;  // of each
  };

  absl::Status Reserve(PairCalls& calls, uint64_t bytes);
  static void Free(PairCalls& calls, const Lists& lists);
  void AddCopies(const TransferGroup::Piece& piece);
  void AddDigests(const TransferGroup::Piece& piece, bool scatters, DigestItemCutter& cutter);

  std::byte* staging_ = nullptr;
  Lists lists_;
  std::vector<Lists> outgrown_;
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
