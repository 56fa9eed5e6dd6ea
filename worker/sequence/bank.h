#ifndef PKV_WORKER_SEQUENCE_BANK_H_
#define PKV_WORKER_SEQUENCE_BANK_H_

#include <span>
#include <vector>

#include "absl/status/status.h"
#include "pkv/block/object_header.h"
#include "pkv/kernels/codebook.h"

namespace pkv {

// The pattern tables that came with a sequence, and its bank: the one table that its blocks refer
// to ++ what blocks appended, in chain order (ARCHITECTURE: "sequence bank"). Counts are known from
// headers alone; the codebooks fill layer by layer.
//
// Tables that no block refers to do no harm: a ticket may name one whose prefill lost a race.
//
// Thread-compatible; codebooks of different layers may be touched from different threads.
class SequenceBanks {
 public:
  struct Bank {
    Digest table;
    int num_k = 0, num_v = 0;  // table ++ appended, by the headers seen so far
    std::vector<Codebook> layers;
  };

  explicit SequenceBanks(const KvShape& shape) : shape_(shape) {}

  // Adds the bank of a table that arrived, or of one about to be mined (zero id), and makes it
  // current. A table that is known already is not added again: a chain has one bank per table.
  void AddTable(const Digest& table, int num_k, int num_v);

  // Follows the chain by one block: its table must be known, be that of the blocks before, and its
  // bank as large as the block says.
  //   FailedPrecondition  the block belongs to another chain, or its table is not here
  absl::Status AddBlock(const ObjectHeader& header);

  // The bank of a block or table; null when `table` is zero or unknown.
  Bank* Find(const Digest& table);
  // The bank that the next block of the sequence is encoded against: that of the last block, else
  // the last table added. Null when there is none.
  Bank* Current();
  // Names the bank that was added under a provisional (zero) id: a mined table is identified by its
  // content.
  void NameCurrent(const Digest& table);

  const std::vector<Bank>& banks() const { return banks_; }

 private:
  KvShape shape_;
  std::vector<Bank> banks_;
  int current_index_ = -1;
  Digest chain_;  // the table of the blocks seen so far; zero before
};

// How many blocks from the start of `blocks` form an unbroken chain over `tables` (headers of the
// table objects).
int UsableBlocks(const KvShape& shape, std::span<const ObjectHeader> tables,
                 std::span<const ObjectHeader> blocks);

}  // namespace pkv

#endif  // PKV_WORKER_SEQUENCE_BANK_H_
