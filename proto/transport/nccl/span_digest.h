#ifndef PKV_PROTO_TRANSPORT_NCCL_SPAN_DIGEST_H_
#define PKV_PROTO_TRANSPORT_NCCL_SPAN_DIGEST_H_

// CRC-32C of spans of device memory, cut into items that one warp each works on, and which it may
// copy meanwhile: a byte that is scattered is read once.
//
// An item adds (xor) its part to the digest of its span; digests start from DigestSeed. When all
// items are done, digests hold what Crc32c() returns for the spans, so that the checksums of sealed
// frames are compared as they are.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "proto/transport/nccl/crc32c_math.h"

namespace pkv {

// Of device memory: its owner outlives what is done with it.
struct DeviceSpan {
  std::byte* data = nullptr;
  uint64_t bytes = 0;
};

// Spans begin and end on 16 bytes: what one thread loads at a time. Frames and pages do on 128.
inline constexpr uint64_t kSpanAlignmentBytes = 16;
// 32 threads of 16 bytes.
inline constexpr uint64_t kDigestRowBytes = 512;
// What one item covers at most; 32 rows, after which combining 32 threads' states costs a tenth.
inline constexpr uint64_t kDigestItemBytes = 16 << 10;

// Rows of an item end where the item ends: when the first is not full, its first threads have
// zeros, which a polynomial does not see.
struct DigestItem {
  const std::byte* data = nullptr;
  std::byte* to = nullptr;    // the bytes are copied there too; null: nowhere. No item's data
  uint32_t bytes = 0;         // a multiple of 16, not 0
  uint32_t shift = 0;         // x^(bits of the span after this item)
  uint32_t digest_index = 0;  // of its span
  uint32_t reserved = 0;
};
static_assert(sizeof(DigestItem) == 32, "read by kernels");

// What the digest of a span of `bytes` starts from: ~(0xffffffff x^(8 bytes)).
uint32_t DigestSeed(uint64_t bytes);

// Cuts spans into items. Keeps the powers of x that it has computed: spans of equal sizes, as pages
// are, cost no multiplication each. Thread-compatible.
class DigestItemCutter {
 public:
  // REQUIRES: item_bytes a multiple of kDigestRowBytes, below 2^32, not 0.
  explicit DigestItemCutter(uint64_t item_bytes = kDigestItemBytes);

  // Appends the items of a span to `items` and returns its seed. REQUIRES: `span` aligned as above.
  // A span of no bytes has no items, and its seed is its checksum.
  uint32_t Append(const DeviceSpan& span, uint32_t digest_index, std::vector<DigestItem>& items);
  // Appends the items of a part of a span, which `bytes_after` follow in the span. Parts' digests,
  // of which one starts from the span's seed and the others from 0, add up (xor) to the span's.
  // `to`: where the part is copied; null: nowhere. REQUIRES: all aligned as above.
  void AppendPart(const DeviceSpan& part, uint64_t bytes_after, std::byte* to,
                  uint32_t digest_index, std::vector<DigestItem>& items);
  // DigestSeed(bytes).
  uint32_t SeedOf(uint64_t bytes);

 private:
  uint64_t item_bytes_;
  std::vector<uint32_t> shifts_;  // x^(8 item_bytes_ k)
  uint64_t seeded_bytes_ = 0;
  uint32_t seed_;  // of seeded_bytes_
};

// The CPU twin of the kernel (span_kernels.h), in its order: rows of 32 x 16 bytes, four states a
// thread. `items` point to host memory here.
void DigestOnCpu(std::span<const DigestItem> items, std::span<uint32_t> digests);

// The kernel's constants.
struct DigestTables {
  Crc32cNibbles row = Crc32cNibbles::Of(Crc32cPowerOfX(8 * kDigestRowBytes));
  Crc32cNibbles word = Crc32cNibbles::Of(Crc32cPowerOfX(32));
  // x^(bits of the last row after thread t's 16 bytes + 32).
  uint32_t thread_shift[32] = {};

  constexpr DigestTables() {
    for (int t = 0; t < 32; ++t) thread_shift[t] = Crc32cPowerOfX(128 * (31 - t) + 32);
  }
};

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_NCCL_SPAN_DIGEST_H_
