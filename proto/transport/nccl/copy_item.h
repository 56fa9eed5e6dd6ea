#ifndef PKV_PROTO_TRANSPORT_NCCL_COPY_ITEM_H_
#define PKV_PROTO_TRANSPORT_NCCL_COPY_ITEM_H_

#include <cstddef>
#include <cstdint>

namespace pkv {

// What one CTA copies at a time: at most kCopyItemBytes, so that pages of one size spread evenly.
struct CopyItem {
  const std::byte* from = nullptr;  // both aligned to 16 bytes
  std::byte* to = nullptr;
  uint64_t bytes = 0;  // a multiple of 16
};
static_assert(sizeof(CopyItem) == 24, "read by kernels");

inline constexpr uint64_t kCopyItemBytes = 32 << 10;

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_NCCL_COPY_ITEM_H_
