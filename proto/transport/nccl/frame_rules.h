#ifndef PKV_PROTO_TRANSPORT_NCCL_FRAME_RULES_H_
#define PKV_PROTO_TRANSPORT_NCCL_FRAME_RULES_H_

// What the numbers stored in a layer frame must be, in a form that a kernel reads: the checks of
// CheckFrameNumbers (pkv/block/object_view.h) for frames that never see host memory.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "proto/base/host_device.h"

namespace pkv {

struct ObjectHeader;  // pkv/block/object_header.h

enum class NumberRule : uint32_t {
  kFinite,  // fp16, neither infinite nor NaN
  kScale,   // fp16, 0 or in 2^-14..65504
  kId       // u8, below `bank_size` or 255
};

// One kind of numbers: `head_bytes` in each of `num_heads` heads, the first at `offset` of the
// frame, `head_stride` bytes apart. Begins and ends on 16 bytes.
struct NumberSection {
  uint32_t offset = 0;
  uint32_t head_stride = 0;
  uint32_t num_heads = 0;
  uint32_t head_bytes = 0;
  NumberRule rule = NumberRule::kFinite;
  uint32_t bank_size = 0;

  friend bool operator==(const NumberSection&, const NumberSection&) = default;
};

struct FrameRules {
  static constexpr int kMaxSections = 8;

  uint32_t num_sections = 0;
  uint32_t reserved = 0;
  std::array<NumberSection, kMaxSections> sections = {};

  friend bool operator==(const FrameRules&, const FrameRules&) = default;

  // REQUIRES: the sizes of `header` were accepted by ParseHeader.
  static FrameRules Of(const ObjectHeader& header);
};
static_assert(sizeof(FrameRules) == 8 + 8 * 24, "read by kernels");

// A part of one frame to check; `flag_index` names where a non-zero tells of a wrong number. Of
// each section a part has every num_parts-th run of kCheckVectors pieces of 16 bytes, from the
// part-th on.
struct CheckItem {
  const std::byte* frame = nullptr;  // aligned to 16 bytes
  uint32_t rules_index = 0;
  uint32_t flag_index = 0;
  uint32_t part = 0;
  uint32_t num_parts = 1;
};
static_assert(sizeof(CheckItem) == 24, "read by kernels");
inline constexpr uint32_t kCheckVectors = 128;  // of a CTA at a time
// Numbers of one part. One CTA takes 1 MB of a window about 0.3 ms, which the whole GPU waits for.
inline constexpr uint64_t kCheckItemBytes = 32 << 10;

uint32_t NumCheckItems(const FrameRules& rules);
// All parts of a frame.
void AppendCheckItems(const std::byte* frame, const FrameRules& rules, uint32_t rules_index,
                      uint32_t flag_index, std::vector<CheckItem>& items);

// Two fp16 numbers, or four ids, at a time; non-zero when one of them breaks the rule.
PKV_HOST_DEVICE inline uint32_t BreaksRule(uint32_t word, NumberRule rule, uint32_t bank_size) {
  uint32_t bad = 0;
  if (rule == NumberRule::kId) {
    for (int shift = 0; shift < 32; shift += 8) {
      const uint32_t id = (word >> shift) & 0xff;
      bad |= id >= bank_size && id != 255 ? 1u : 0u;
    }
    return bad;
  }
  for (int shift = 0; shift < 32; shift += 16) {
    const uint32_t h = (word >> shift) & 0xffff;
    if (rule == NumberRule::kFinite) {
      bad |= (h & 0x7c00) == 0x7c00 ? 1u : 0u;
    } else {
      bad |= h != 0 && (h < 0x0400 || h >= 0x7c00) ? 1u : 0u;
    }
  }
  return bad;
}

// The CPU twin of the kernel (span_kernels.h). `items` point to host memory here.
void CheckOnCpu(std::span<const CheckItem> items, std::span<const FrameRules> rules,
                std::span<uint32_t> flags);

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_NCCL_FRAME_RULES_H_
