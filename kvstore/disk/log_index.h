#ifndef PKV_KVSTORE_DISK_LOG_INDEX_H_
#define PKV_KVSTORE_DISK_LOG_INDEX_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/node_hash_map.h"
#include "absl/time/time.h"
#include "kvstore/disk/log_format.h"
#include "pkv/block/digest.h"
#include "pkv/block/object_header.h"
#include "pkv/block/object_key.h"

namespace pkv {

// What is known of an object on disk without reading it.
struct LogRecord {
  uint64_t segment = 0;
  uint64_t offset = 0;  // of the record's head unit in the segment
  uint64_t object_bytes = 0;
  uint64_t frame_bytes = 0;
  int num_layers = 0;
  // The next three as in RecordHead.
  uint16_t num_patterns_k = 0;
  uint16_t num_patterns_v = 0;
  uint32_t content_crc32c = 0;
  Digest table = {};

  bool IsAt(const LogRecord& other) const {
    return segment == other.segment && offset == other.offset;
  }
};

LogRecord LogRecordOf(const RecordHead& head);
// Of an object that has no place yet; `head` is its header and frame table, or empty: then it has
// no checksum either. REQUIRES: a head that fits the header.
LogRecord DescribeObject(const ObjectHeader& header, std::span<const std::byte> head);
// Whether a head is that of the object on disk, as far as checksums of all its parts tell.
bool IsHeadOf(std::span<const std::byte> head, const LogRecord& record);

// Which objects a log holds, and where. Knows no file.
//
// Thread-compatible.
class LogIndex {
 public:
  struct Entry {
    LogRecord record;
    absl::Time last_use;
    size_t rank = 0;  // in its segment's list
  };
  struct Dropped {
    uint64_t object_bytes = 0;
    absl::Time last_use;
  };

  // Takes the place of an older record of this key.
  void Insert(const ObjectKey& key, const LogRecord& record, absl::Time last_use);
  // False when there is none.
  bool Erase(const ObjectKey& key);
  // Null on a miss; valid until the next change.
  const Entry* Find(const ObjectKey& key) const;
  // A use.
  void Touch(const ObjectKey& key, absl::Time now);

  // Whether blocks in the index refer to this table, itself in the index or not.
  bool HasDependents(const ObjectKey& table) const { return dependents_.contains(table); }
  // Tables in a segment to which blocks in other segments refer.
  std::vector<std::pair<ObjectKey, LogRecord>> NeededTables(uint64_t segment) const;
  // Those in a segment at `offset` or behind.
  std::vector<std::pair<ObjectKey, LogRecord>> RecordsBehind(uint64_t segment,
                                                             uint64_t offset) const;
  // Forgets everything in a segment.
  std::vector<Dropped> DropSegment(uint64_t segment);

  size_t size() const { return entries_.size(); }

 private:
  // Entries stay where they are while others come and go: segments list them.
  using Entries = absl::node_hash_map<ObjectKey, Entry>;

  static ObjectKey TableOf(const ObjectKey& key, const LogRecord& record) {
    return {ObjectKind::kTable, record.table, key.variant};
  }
  void CountDependent(const ObjectKey& key, const LogRecord& record);
  void UncountDependent(const ObjectKey& key, const LogRecord& record);
  void Unlist(Entries::value_type& item);

  Entries entries_;
  std::map<uint64_t, std::vector<Entries::value_type*>> segments_;
  absl::flat_hash_map<ObjectKey, uint64_t> dependents_;  // by table; never 0
};

}  // namespace pkv

#endif  // PKV_KVSTORE_DISK_LOG_INDEX_H_
