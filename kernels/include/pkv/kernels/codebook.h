#ifndef PKV_KERNELS_CODEBOOK_H_
#define PKV_KERNELS_CODEBOOK_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/block/object_view.h"

namespace pkv {

// The patterns of one layer: an append-only list of fp16 vectors [head_dim] for each (kv head, K or
// V).
//
// Pattern ids are positions in it; at most 255. The list of all layers of a sequence is its bank:
// table, then the patterns its blocks appended while decoding, in chain order.
//
// Thread-compatible.
class Codebook {
 public:
  Codebook() = default;
  Codebook(int num_kv_heads, int head_dim)
      : k_(num_kv_heads), v_(num_kv_heads), head_dim_(head_dim) {}

  int num_kv_heads() const { return static_cast<int>(k_.size()); }
  int head_dim() const { return head_dim_; }
  // Equal for every head.
  int num_k() const { return k_.empty() ? 0 : static_cast<int>(k_[0].size()) / head_dim_; }
  int num_v() const { return v_.empty() ? 0 : static_cast<int>(v_[0].size()) / head_dim_; }

  // [pattern][head_dim] fp16 bits. Valid until the next append.
  std::span<const uint16_t> k(int kv_head) const { return k_[kv_head]; }
  std::span<const uint16_t> v(int kv_head) const { return v_[kv_head]; }

  // `patterns` is [num][head_dim]; call once per head with the same num. REQUIRES: the total stays
  // within 255.
  void AppendK(int kv_head, std::span<const uint16_t> patterns);
  void AppendV(int kv_head, std::span<const uint16_t> patterns);

  // The codebook of `layer` of a table object. InvalidArgument: not a table.
  static absl::StatusOr<Codebook> FromTable(const ObjectHeader& header,
                                            std::span<const std::byte> frame);
  // Writes this codebook as a table's layer frame. `frame` has the size that a header with these
  // counts gives.
  absl::Status WriteTableFrame(std::span<std::byte> frame) const;
  // Appends what a decode-time block carries (kFlagAppendsK, kFlagAppendsV).
  //   FailedPrecondition  the block's bank size is not this codebook's: it belongs to another chain
  absl::Status AppendFromBlock(const ObjectHeader& header, std::span<const std::byte> frame);

 private:
  std::vector<std::vector<uint16_t>> k_, v_;  // [kv_head]
  int head_dim_ = 0;
};

}  // namespace pkv

#endif  // PKV_KERNELS_CODEBOOK_H_
