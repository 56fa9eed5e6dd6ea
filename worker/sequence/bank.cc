#include "worker/sequence/bank.h"

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"

namespace pkv {

void SequenceBanks::AddTable(const Digest& table, int num_k, int num_v) {
  if (const Bank* known = Find(table); known != nullptr) {
    current_index_ = static_cast<int>(known - banks_.data());
    return;
  }
  std::vector<Codebook> layers(shape_.num_layers, Codebook(shape_.num_kv_heads, shape_.head_dim));
  banks_.push_back({table, num_k, num_v, std::move(layers)});
  current_index_ = static_cast<int>(banks_.size()) - 1;
}

absl::Status SequenceBanks::AddBlock(const ObjectHeader& header) {
  if ((header.flags & kFlagHasPatterns) == 0) return absl::OkStatus();
  Bank* bank = Find(header.table);
  if (bank == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("block at token ", header.first_token, " refers to pattern table ",
                     header.table.ToShortHex(), ", which is not part of this sequence"));
  }
  if (header.num_patterns_k != bank->num_k || header.num_patterns_v != bank->num_v) {
    return absl::FailedPreconditionError(absl::StrCat(
        "block at token ", header.first_token, " was encoded against ", header.num_patterns_k, "+",
        header.num_patterns_v, " patterns, this chain has ", bank->num_k, "+", bank->num_v));
  }
  if (chain_.IsZero()) chain_ = header.table;
  if (header.table != chain_) {
    return absl::FailedPreconditionError(
        absl::StrCat("block at token ", header.first_token, " refers to pattern table ",
                     header.table.ToShortHex(), ", those before it to ", chain_.ToShortHex()));
  }
  bank->num_k += (header.flags & kFlagAppendsK) != 0 ? 1 : 0;
  bank->num_v += (header.flags & kFlagAppendsV) != 0 ? 1 : 0;
  current_index_ = static_cast<int>(bank - banks_.data());
  return absl::OkStatus();
}

SequenceBanks::Bank* SequenceBanks::Find(const Digest& table) {
  if (table.IsZero()) return nullptr;
  for (Bank& bank : banks_) {
    if (bank.table == table) return &bank;
  }
  return nullptr;
}

SequenceBanks::Bank* SequenceBanks::Current() {
  return current_index_ < 0 ? nullptr : &banks_[current_index_];
}

void SequenceBanks::NameCurrent(const Digest& table) {
  PKV_CHECK(current_index_ >= 0 && banks_[current_index_].table.IsZero());
  banks_[current_index_].table = table;
}

int UsableBlocks(const KvShape& shape, std::span<const ObjectHeader> tables,
                 std::span<const ObjectHeader> blocks) {
  SequenceBanks banks(KvShape{0, shape.num_kv_heads, shape.head_dim});
  for (const ObjectHeader& table : tables) {
    banks.AddTable(table.id, table.num_patterns_k, table.num_patterns_v);
  }
  int usable = 0;
  for (const ObjectHeader& block : blocks) {
    if (!banks.AddBlock(block).ok()) break;
    ++usable;
  }
  return usable;
}

}  // namespace pkv
