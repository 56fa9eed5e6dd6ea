#include "proto/transport/nccl/pair_slot.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// Lists of a 64 MiB group of pages of 80 kB: 4,200 digest items, 840 check items. More is allocated
// when a group has more.
constexpr uint64_t kFirstListBytes = 512 << 10;

template <typename T>
uint64_t BytesOf(const std::vector<T>& list) {
  return list.size() * sizeof(T);
}

}  // namespace

absl::Status PairSlot::Allocate(PairCalls& calls, uint64_t group_bytes) {
  PKV_ASSIGN_OR_RETURN(staging_, calls.AllocateDevice(group_bytes));
  PKV_ASSIGN_OR_RETURN(copied_, calls.MakeEvent());
  PKV_ASSIGN_OR_RETURN(received_, calls.MakeEvent());
  PKV_ASSIGN_OR_RETURN(done_, calls.MakeEvent());
  return Reserve(calls, kFirstListBytes);
}

void PairSlot::Free(PairCalls& calls, const Lists& lists) {
  if (lists.device != nullptr) calls.FreeDevice(lists.device);
  if (lists.host != nullptr) calls.FreeHost(lists.host);
}

void PairSlot::Free(PairCalls& calls) {
  if (staging_ != nullptr) calls.FreeDevice(staging_);
  for (const Lists& lists : outgrown_) Free(calls, lists);
  Free(calls, lists_);
  for (void* event : {copied_, received_, done_}) {
    if (event != nullptr) calls.DestroyEvent(event);
  }
  *this = PairSlot();
}

absl::Status PairSlot::Reserve(PairCalls& calls, uint64_t bytes) {
  if (bytes <= lists_.bytes) return absl::OkStatus();
  const uint64_t wanted = std::max(bytes, 2 * lists_.bytes);
  if (lists_.bytes > 0) outgrown_.push_back(std::exchange(lists_, {}));
  PKV_ASSIGN_OR_RETURN(lists_.device, calls.AllocateDevice(wanted));
  PKV_ASSIGN_OR_RETURN(lists_.host, calls.AllocateHost(wanted));
  lists_.bytes = wanted;
  return absl::OkStatus();
}

void PairSlot::AddCopies(const TransferGroup::Piece& piece) {
  for (uint64_t begin = 0; begin < piece.bytes; begin += kCopyItemBytes) {
    copies_.push_back({.from = piece.data + begin,
                       .to = staging_ + piece.offset + begin,
                       .bytes = std::min(piece.bytes - begin, kCopyItemBytes)});
  }
}

void PairSlot::AddDigests(const TransferGroup::Piece& piece, bool scatters,
                          DigestItemCutter& cutter) {
  const auto index = static_cast<uint32_t>(seeds_.size());
  seeds_.push_back(piece.begins_span() ? cutter.SeedOf(piece.span.bytes) : 0);
  std::byte* const from = scatters ? staging_ + piece.offset : piece.data;
  cutter.AppendPart({from, piece.bytes}, piece.bytes_after, scatters ? piece.data : nullptr, index,
                    items_);
  if (piece.rules == nullptr || !piece.ends_span()) return;
  // Neighbours have the same, but for a few.
  if (rules_.empty() || rules_.back() != *piece.rules) rules_.push_back(*piece.rules);
  AppendCheckItems(piece.span.data, rules_.back(), static_cast<uint32_t>(rules_.size() - 1), index,
                   checks_);
}

absl::Status PairSlot::Fill(PairCalls& calls, const TransferGroup& group, SlotWork work,
                            DigestItemCutter& cutter) {
  copies_.clear();
  items_.clear();
  checks_.clear();
  rules_.clear();
  seeds_.clear();
  for (const TransferGroup::Piece& piece : group.pieces) {
    if (work == SlotWork::kGather) {
      AddCopies(piece);
    } else {
      AddDigests(piece, work == SlotWork::kScatter, cutter);
    }
  }
  results_at_ = BytesOf(copies_) + BytesOf(items_) + BytesOf(checks_) + BytesOf(rules_);
  const uint64_t bytes = results_at_ + 2 * BytesOf(seeds_);
  PKV_RETURN_IF_ERROR(Reserve(calls, bytes));
  std::byte* to = lists_.host;
  const auto append = [&to](const auto& list) {
    if (!list.empty()) std::memcpy(to, list.data(), BytesOf(list));
    to += BytesOf(list);
  };
  append(copies_);
  append(items_);
  append(checks_);
  append(rules_);
  append(seeds_);
  std::memset(to, 0, BytesOf(seeds_));
  return absl::OkStatus();
}

absl::Status PairSlot::Launch(PairCalls& calls, void* stream) {
  const uint64_t items_at = BytesOf(copies_);
  const uint64_t checks_at = items_at + BytesOf(items_);
  const uint64_t rules_at = checks_at + BytesOf(checks_);
  const uint64_t bytes = results_at_ + 2 * BytesOf(seeds_);
  if (bytes == 0) return absl::OkStatus();
  PKV_RETURN_IF_ERROR(calls.CopyAsync(lists_.device, lists_.host, bytes, stream));
  if (!copies_.empty()) {
    PKV_RETURN_IF_ERROR(calls.CopyItems(reinterpret_cast<const CopyItem*>(lists_.device),
                                        static_cast<uint32_t>(copies_.size()), stream));
  }
  if (seeds_.empty()) return absl::OkStatus();
  auto* digests = reinterpret_cast<uint32_t*>(lists_.device + results_at_);
  PKV_RETURN_IF_ERROR(
      calls.DigestItems(reinterpret_cast<const DigestItem*>(lists_.device + items_at),
                        static_cast<uint32_t>(items_.size()), digests, stream));
  if (!checks_.empty()) {
    PKV_RETURN_IF_ERROR(
        calls.CheckItems(reinterpret_cast<const CheckItem*>(lists_.device + checks_at),
                         static_cast<uint32_t>(checks_.size()),
                         reinterpret_cast<const FrameRules*>(lists_.device + rules_at),
                         digests + seeds_.size(), stream));
  }
  return calls.CopyAsync(lists_.host + results_at_, lists_.device + results_at_,
                         2 * BytesOf(seeds_), stream);
}

std::span<const uint32_t> PairSlot::digests() const {
  return {reinterpret_cast<const uint32_t*>(lists_.host + results_at_), seeds_.size()};
}

std::span<const uint32_t> PairSlot::flags() const {
  return {reinterpret_cast<const uint32_t*>(lists_.host + results_at_) + seeds_.size(),
          seeds_.size()};
}

}  // namespace pkv
