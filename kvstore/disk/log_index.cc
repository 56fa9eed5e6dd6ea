#include "kvstore/disk/log_index.h"

#include "proto/base/checksum.h"
#include "proto/base/log.h"

namespace pkv {

namespace {

uint32_t ContentChecksum(std::span<const std::byte> head, int num_layers) {
  return Crc32c(head.subspan(offsetof(ObjectHeader, header_crc32c),
                             sizeof(uint32_t) * (1 + static_cast<size_t>(num_layers))));
}

}  // namespace

LogRecord LogRecordOf(const RecordHead& head) {
  return {.segment = head.segment,
          .offset = head.offset,
          .object_bytes = head.object_bytes,
          .frame_bytes = head.frame_bytes,
          .num_layers = head.num_layers,
          .num_patterns_k = head.num_patterns_k,
          .num_patterns_v = head.num_patterns_v,
          .content_crc32c = head.content_crc32c,
          .table = head.table};
}

LogRecord DescribeObject(const ObjectHeader& header, std::span<const std::byte> head) {
  const bool is_block = header.kind == ObjectKind::kBlock;
  // A reader has one bank for all blocks of a chain: what follows has this block's, and what it
  // appends.
  const int appended_k = (header.flags & kFlagAppendsK) != 0 ? 1 : 0;
  const int appended_v = (header.flags & kFlagAppendsV) != 0 ? 1 : 0;
  return {.object_bytes = header.object_bytes,
          .frame_bytes = header.frame_bytes,
          .num_layers = header.num_layers,
          .num_patterns_k =
              is_block ? static_cast<uint16_t>(header.num_patterns_k + appended_k) : uint16_t{0},
          .num_patterns_v =
              is_block ? static_cast<uint16_t>(header.num_patterns_v + appended_v) : uint16_t{0},
          .content_crc32c = head.empty() ? 0 : ContentChecksum(head, header.num_layers),
          .table = header.table};
}

bool IsHeadOf(std::span<const std::byte> head, const LogRecord& record) {
  return head.size() == FramesOffset(record.num_layers) &&
         ContentChecksum(head, record.num_layers) == record.content_crc32c;
}

void LogIndex::Insert(const ObjectKey& key, const LogRecord& record, absl::Time last_use) {
  Erase(key);
  const auto [at, inserted] = entries_.try_emplace(key);
  auto& listed = segments_[record.segment];
  at->second = {record, last_use, listed.size()};
  listed.push_back(&*at);
  CountDependent(key, record);
}

bool LogIndex::Erase(const ObjectKey& key) {
  const auto found = entries_.find(key);
  if (found == entries_.end()) return false;
  UncountDependent(key, found->second.record);
  Unlist(*found);
  entries_.erase(found);
  return true;
}

const LogIndex::Entry* LogIndex::Find(const ObjectKey& key) const {
  const auto found = entries_.find(key);
  return found == entries_.end() ? nullptr : &found->second;
}

void LogIndex::Touch(const ObjectKey& key, absl::Time now) {
  const auto found = entries_.find(key);
  if (found != entries_.end()) found->second.last_use = now;
}

std::vector<std::pair<ObjectKey, LogRecord>> LogIndex::NeededTables(uint64_t segment) const {
  std::vector<std::pair<ObjectKey, LogRecord>> tables;
  const auto listed = segments_.find(segment);
  if (listed == segments_.end()) return tables;
  absl::flat_hash_map<ObjectKey, uint64_t> inside;  // blocks of this very segment, by table
  for (const Entries::value_type* item : listed->second) {
    if (!item->second.record.table.IsZero()) ++inside[TableOf(item->first, item->second.record)];
  }
  for (const Entries::value_type* item : listed->second) {
    if (item->first.kind != ObjectKind::kTable) continue;
    const auto all = dependents_.find(item->first);
    const auto here = inside.find(item->first);
    const uint64_t num_here = here == inside.end() ? 0 : here->second;
    if (all != dependents_.end() && all->second > num_here) {
      tables.emplace_back(item->first, item->second.record);
    }
  }
  return tables;
}

std::vector<std::pair<ObjectKey, LogRecord>> LogIndex::RecordsBehind(uint64_t segment,
                                                                     uint64_t offset) const {
  std::vector<std::pair<ObjectKey, LogRecord>> records;
  const auto listed = segments_.find(segment);
  if (listed == segments_.end()) return records;
  for (const Entries::value_type* item : listed->second) {
    if (item->second.record.offset >= offset) {
      records.emplace_back(item->first, item->second.record);
    }
  }
  return records;
}

std::vector<LogIndex::Dropped> LogIndex::DropSegment(uint64_t segment) {
  std::vector<Dropped> dropped;
  const auto listed = segments_.find(segment);
  if (listed == segments_.end()) return dropped;
  for (const Entries::value_type* item : listed->second) {
    dropped.push_back({item->second.record.object_bytes, item->second.last_use});
    UncountDependent(item->first, item->second.record);
    const ObjectKey key = item->first;  // the entry's own would die with it
    entries_.erase(key);
  }
  segments_.erase(listed);
  return dropped;
}

void LogIndex::CountDependent(const ObjectKey& key, const LogRecord& record) {
  if (!record.table.IsZero()) ++dependents_[TableOf(key, record)];
}

void LogIndex::UncountDependent(const ObjectKey& key, const LogRecord& record) {
  if (record.table.IsZero()) return;
  const auto found = dependents_.find(TableOf(key, record));
  PKV_CHECK(found != dependents_.end() && found->second > 0);
  if (--found->second == 0) dependents_.erase(found);
}

void LogIndex::Unlist(Entries::value_type& item) {
  auto& listed = segments_[item.second.record.segment];
  const size_t rank = item.second.rank;
  PKV_CHECK(rank < listed.size() && listed[rank] == &item, "rank ", rank, " of ", listed.size());
  listed[rank] = listed.back();
  listed[rank]->second.rank = rank;
  listed.pop_back();
}

}  // namespace pkv
