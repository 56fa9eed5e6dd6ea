#include "proto/transport/nccl/pair_slot.h"

#include <algorithm>
#include <cstring>

#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// Lists of a 32 MiB group of pages of 80 kB: 1,300 copies, 2,100 digest items. More is allocated
// when a group has more.
constexpr uint64_t kFirstListBytes = 256 << 10;

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

void PairSlot::Free(PairCalls& calls) {
  if (staging_ != nullptr) calls.FreeDevice(staging_);
  if (device_ != nullptr) calls.FreeDevice(device_);
  if (host_ != nullptr) calls.FreeHost(host_);
  for (void* event : {copied_, received_, done_}) {
    if (event != nullptr) calls.DestroyEvent(event);
  }
  *this = PairSlot();
}

absl::Status PairSlot::Reserve(PairCalls& calls, uint64_t bytes) {
  if (bytes <= reserved_bytes_) return absl::OkStatus();
  const uint64_t wanted = std::max(bytes, 2 * reserved_bytes_);
  if (device_ != nullptr) calls.FreeDevice(device_);
  if (host_ != nullptr) calls.FreeHost(host_);
  device_ = host_ = nullptr;
  reserved_bytes_ = 0;
  PKV_ASSIGN_OR_RETURN(device_, calls.AllocateDevice(wanted));
  PKV_ASSIGN_OR_RETURN(host_, calls.AllocateHost(wanted));
  reserved_bytes_ = wanted;
  return absl::OkStatus();
}

uint64_t PairSlot::ListBytes(const TransferPlan::Group& group) {
  const auto pieces_of = [](uint64_t bytes, uint64_t most) { return (bytes + most - 1) / most; };
  uint64_t bytes = 0;
  for (const TransferPlan::Piece& piece : group.pieces) {
    bytes += sizeof(CopyItem) * pieces_of(piece.bytes, kCopyItemBytes);
  }
  for (const TransferPlan::EndingSpan& ending : group.ending) {
    bytes +=
        2 * sizeof(uint32_t) + sizeof(DigestItem) * pieces_of(ending.span.bytes, kDigestItemBytes);
    if (ending.rules != nullptr) {
      bytes += sizeof(CheckItem) * NumCheckItems(*ending.rules) + sizeof(FrameRules);
    }
  }
  return bytes;
}

void PairSlot::Fill(const TransferPlan::Group& group, bool gather, bool with_copies,
                    bool with_digests, DigestItemCutter& cutter) {
  copies_.clear();
  items_.clear();
  checks_.clear();
  rules_.clear();
  seeds_.clear();
  if (with_copies) {
    for (const TransferPlan::Piece& piece : group.pieces) {
      for (uint64_t begin = 0; begin < piece.bytes; begin += kCopyItemBytes) {
        std::byte* outside = piece.data + begin;
        std::byte* inside = staging_ + piece.offset + begin;
        copies_.push_back({.from = gather ? outside : inside,
                           .to = gather ? inside : outside,
                           .bytes = std::min(piece.bytes - begin, kCopyItemBytes)});
      }
    }
  }
  if (with_digests) {
    for (const TransferPlan::EndingSpan& ending : group.ending) {
      const auto index = static_cast<uint32_t>(seeds_.size());
      seeds_.push_back(cutter.Append(ending.span, index, items_));
      if (ending.rules == nullptr) continue;
      // Neighbours have the same, but for a few.
      if (rules_.empty() || rules_.back() != *ending.rules) rules_.push_back(*ending.rules);
      AppendCheckItems(ending.span.data, rules_.back(), static_cast<uint32_t>(rules_.size() - 1),
                       index, checks_);
    }
  }
  results_at_ = BytesOf(copies_) + BytesOf(items_) + BytesOf(checks_) + BytesOf(rules_);
  const uint64_t bytes = results_at_ + 2 * BytesOf(seeds_);
  PKV_CHECK(bytes <= reserved_bytes_, bytes, " bytes of lists, room for ", reserved_bytes_);
  std::byte* to = host_;
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
}

absl::Status PairSlot::Launch(PairCalls& calls, void* stream) {
  const uint64_t items_at = BytesOf(copies_);
  const uint64_t checks_at = items_at + BytesOf(items_);
  const uint64_t rules_at = checks_at + BytesOf(checks_);
  const uint64_t bytes = results_at_ + 2 * BytesOf(seeds_);
  if (bytes == 0) return absl::OkStatus();
  PKV_RETURN_IF_ERROR(calls.CopyAsync(device_, host_, bytes, stream));
  if (!copies_.empty()) {
    PKV_RETURN_IF_ERROR(calls.CopyItems(reinterpret_cast<const CopyItem*>(device_),
                                        static_cast<uint32_t>(copies_.size()), stream));
  }
  if (seeds_.empty()) return absl::OkStatus();
  auto* digests = reinterpret_cast<uint32_t*>(device_ + results_at_);
  PKV_RETURN_IF_ERROR(calls.DigestItems(reinterpret_cast<const DigestItem*>(device_ + items_at),
                                        static_cast<uint32_t>(items_.size()), digests, stream));
  if (!checks_.empty()) {
    PKV_RETURN_IF_ERROR(calls.CheckItems(reinterpret_cast<const CheckItem*>(device_ + checks_at),
                                         static_cast<uint32_t>(checks_.size()),
                                         reinterpret_cast<const FrameRules*>(device_ + rules_at),
                                         digests + seeds_.size(), stream));
  }
  return calls.CopyAsync(host_ + results_at_, device_ + results_at_, 2 * BytesOf(seeds_), stream);
}

std::span<const uint32_t> PairSlot::digests() const {
  return {reinterpret_cast<const uint32_t*>(host_ + results_at_), seeds_.size()};
}

std::span<const uint32_t> PairSlot::flags() const {
  return {reinterpret_cast<const uint32_t*>(host_ + results_at_) + seeds_.size(), seeds_.size()};
}

}  // namespace pkv
