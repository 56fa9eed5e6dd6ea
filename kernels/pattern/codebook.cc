#include "pkv/kernels/codebook.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/block/payload_layout.h"

namespace pkv {
namespace {

void Append(std::span<const uint16_t> patterns, int head_dim, std::vector<uint16_t>& list) {
  const size_t limit = static_cast<size_t>(kMaxPatterns) * head_dim;
  PKV_CHECK(patterns.size() % head_dim == 0 && list.size() + patterns.size() <= limit, "appending ",
            patterns.size(), " values to ", list.size(), ", head_dim ", head_dim);
  list.insert(list.end(), patterns.begin(), patterns.end());
}

std::vector<uint16_t> ReadRows(std::span<const std::byte> frame, int64_t offset, int64_t rows,
                               int head_dim) {
  std::vector<uint16_t> values(static_cast<size_t>(rows) * head_dim);
  if (!values.empty()) {
    std::memcpy(values.data(), frame.data() + offset, values.size() * sizeof(uint16_t));
  }
  return values;
}

ObjectHeader TableHeader(int num_kv_heads, int head_dim, int num_k, int num_v) {
  ObjectHeader header;
  header.kind = ObjectKind::kTable;
  header.num_kv_heads = static_cast<uint16_t>(num_kv_heads);
  header.head_dim = static_cast<uint16_t>(head_dim);
  header.num_patterns_k = static_cast<uint16_t>(num_k);
  header.num_patterns_v = static_cast<uint16_t>(num_v);
  return header;
}

absl::Status CheckFrameSize(std::span<const std::byte> frame, const PayloadLayout& layout) {
  if (static_cast<int64_t>(frame.size()) == layout.frame_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("frame has ", frame.size(), " bytes, not ", layout.frame_bytes));
}

}  // namespace

void Codebook::AppendK(int kv_head, std::span<const uint16_t> patterns) {
  Append(patterns, head_dim_, k_[kv_head]);
}

void Codebook::AppendV(int kv_head, std::span<const uint16_t> patterns) {
  Append(patterns, head_dim_, v_[kv_head]);
}

absl::StatusOr<Codebook> Codebook::FromTable(const ObjectHeader& header,
                                             std::span<const std::byte> frame) {
  if (header.kind != ObjectKind::kTable) {
    return absl::InvalidArgumentError(
        absl::StrCat("object kind ", static_cast<int>(header.kind), " is not a table"));
  }
  const PayloadLayout layout = PayloadLayout::Of(header);
  if (absl::Status s = CheckFrameSize(frame, layout); !s.ok()) return s;
  Codebook codebook(header.num_kv_heads, header.head_dim);
  const int64_t k_bytes = int64_t{header.num_patterns_k} * header.head_dim * 2;
  for (int head = 0; head < header.num_kv_heads; ++head) {
    const int64_t at = head * layout.head_bytes;
    codebook.AppendK(head, ReadRows(frame, at, header.num_patterns_k, header.head_dim));
    codebook.AppendV(head, ReadRows(frame, at + k_bytes, header.num_patterns_v, header.head_dim));
  }
  return codebook;
}

absl::Status Codebook::WriteTableFrame(std::span<std::byte> frame) const {
  const PayloadLayout layout =
      PayloadLayout::Of(TableHeader(num_kv_heads(), head_dim_, num_k(), num_v()));
  if (absl::Status s = CheckFrameSize(frame, layout); !s.ok()) return s;
  std::memset(frame.data(), 0, frame.size());
  for (int head = 0; head < num_kv_heads(); ++head) {
    std::byte* out = frame.data() + head * layout.head_bytes;
    const size_t k_bytes = k_[head].size() * sizeof(uint16_t);
    if (k_bytes > 0) std::memcpy(out, k_[head].data(), k_bytes);
    if (!v_[head].empty()) {
      std::memcpy(out + k_bytes, v_[head].data(), v_[head].size() * sizeof(uint16_t));
    }
  }
  return absl::OkStatus();
}

absl::Status Codebook::AppendFromBlock(const ObjectHeader& header,
                                       std::span<const std::byte> frame) {
  const bool appends_k = (header.flags & kFlagAppendsK) != 0;
  const bool appends_v = (header.flags & kFlagAppendsV) != 0;
  if (!appends_k && !appends_v) return absl::OkStatus();
  if (header.num_patterns_k != num_k() || header.num_patterns_v != num_v() ||
      header.num_kv_heads != num_kv_heads() || header.head_dim != head_dim_) {
    return absl::FailedPreconditionError(absl::StrCat(
        "block extends a bank of ", header.num_patterns_k, " K and ", header.num_patterns_v,
        " V patterns, ", header.num_kv_heads, " kv heads of ", header.head_dim, "; this one has ",
        num_k(), " and ", num_v(), ", ", num_kv_heads(), " of ", head_dim_));
  }
  const PayloadLayout layout = PayloadLayout::Of(header);
  if (absl::Status s = CheckFrameSize(frame, layout); !s.ok()) return s;
  for (int head = 0; head < num_kv_heads(); ++head) {
    int64_t at = layout.appended + head * layout.appended_head_bytes;
    if (appends_k) {
      AppendK(head, ReadRows(frame, at, 1, head_dim_));
      at += int64_t{head_dim_} * 2;
    }
    if (appends_v) AppendV(head, ReadRows(frame, at, 1, head_dim_));
  }
  return absl::OkStatus();
}

}  // namespace pkv
