#ifndef PKV_KVSTORE_DISK_SEGMENT_SCAN_H_
#define PKV_KVSTORE_DISK_SEGMENT_SCAN_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/disk/disk.h"
#include "kvstore/disk/log_format.h"

namespace pkv {

struct ScannedSegment {
  SegmentHead head;
  std::vector<RecordHead> records;  // in the order in which they were written
  uint64_t end_bytes = 0;           // behind the last of them
  uint64_t file_bytes = 0;          // all that the file has
  // Places where a record's head was expected and something else stood, not counting zeros.
  uint64_t num_damaged = 0;
  // OK, or the first reason why a unit could not be read. What was read counts: the scan steps over
  // such units, and gives up at the 64th. What it did not see may be records, so that the file must
  // not be cut.
  absl::Status read_status;
};

// Reads the heads in a segment file, not the objects. Behind a record the next one is expected.
// When none stands there, the scan goes on unit by unit: a write that a crash tore or lost, or a
// damaged head, costs its own record and no other. Bytes of a stored object are not taken for a
// record, whatever they are: who wrote them does not know the salt.
//
//   NotFound            empty, or all zero where the head should be: never came to life
//   FailedPrecondition  not a segment, or one of another version
//   DataLoss            the head is damaged, so no record can be told from an object's bytes
//   Unavailable         the head cannot be read: nothing is known of the file
absl::StatusOr<ScannedSegment> ScanSegment(const DiskFile& file);

}  // namespace pkv

#endif  // PKV_KVSTORE_DISK_SEGMENT_SCAN_H_
