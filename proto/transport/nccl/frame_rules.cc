#include "proto/transport/nccl/frame_rules.h"

#include <algorithm>
#include <cstring>

#include "pkv/block/object_header.h"
#include "proto/base/log.h"
#include "proto/block/payload_layout.h"

namespace pkv {
namespace {

constexpr uint32_t kVectorBytes = 16;

}  // namespace

FrameRules FrameRules::Of(const ObjectHeader& header) {
  const PayloadLayout layout = PayloadLayout::Of(header);
  FrameRules rules;
  const auto add = [&](int64_t begin, int64_t end, int64_t stride, NumberRule rule, int bank_size) {
    if (begin == end) return;
    PKV_CHECK(rules.num_sections < kMaxSections, rules.num_sections);
    rules.sections[rules.num_sections++] = {.offset = static_cast<uint32_t>(begin),
                                            .head_stride = static_cast<uint32_t>(stride),
                                            .num_heads = static_cast<uint32_t>(layout.num_kv_heads),
                                            .head_bytes = static_cast<uint32_t>(end - begin),
                                            .rule = rule,
                                            .bank_size = static_cast<uint32_t>(bank_size)};
  };
  if (layout.encoding.is_fp16()) {
    add(0, layout.head_bytes, layout.head_bytes, NumberRule::kFinite, 0);
    return rules;
  }
  const int bank_k = header.num_patterns_k + ((header.flags & kFlagAppendsK) != 0 ? 1 : 0);
  const int bank_v = header.num_patterns_v + ((header.flags & kFlagAppendsV) != 0 ? 1 : 0);
  const int64_t stride = layout.head_bytes;
  add(layout.k_scales, layout.k_zeros, stride, NumberRule::kScale, 0);
  add(layout.k_zeros, layout.v_scales, stride, NumberRule::kFinite, 0);
  add(layout.v_scales, layout.v_zeros, stride, NumberRule::kScale, 0);
  add(layout.v_zeros, layout.k_ids, stride, NumberRule::kFinite, 0);
  add(layout.k_ids, layout.v_ids, stride, NumberRule::kId, bank_k);
  add(layout.v_ids, layout.head_bytes, stride, NumberRule::kId, bank_v);
  add(layout.sinks, layout.sinks + layout.sink_head_bytes, layout.sink_head_bytes,
      NumberRule::kFinite, 0);
  add(layout.appended, layout.appended + layout.appended_head_bytes, layout.appended_head_bytes,
      NumberRule::kFinite, 0);
  return rules;
}

uint32_t NumCheckItems(const FrameRules& rules) {
  uint64_t bytes = 0;
  for (uint32_t s = 0; s < rules.num_sections; ++s) {
    bytes += uint64_t{rules.sections[s].head_bytes} * rules.sections[s].num_heads;
  }
  return static_cast<uint32_t>(
      std::max<uint64_t>((bytes + kCheckItemBytes - 1) / kCheckItemBytes, 1));
}

void AppendCheckItems(const std::byte* frame, const FrameRules& rules, uint32_t rules_index,
                      uint32_t flag_index, std::vector<CheckItem>& items) {
  const uint32_t num_parts = NumCheckItems(rules);
  for (uint32_t part = 0; part < num_parts; ++part) {
    items.push_back({frame, rules_index, flag_index, part, num_parts});
  }
}

void CheckOnCpu(std::span<const CheckItem> items, std::span<const FrameRules> rules,
                std::span<uint32_t> flags) {
  for (const CheckItem& item : items) {
    const FrameRules& of = rules[item.rules_index];
    for (uint32_t s = 0; s < of.num_sections; ++s) {
      const NumberSection& section = of.sections[s];
      const uint32_t vectors = section.head_bytes / kVectorBytes;
      for (uint32_t i = 0; i < vectors * section.num_heads; ++i) {
        if (i / kCheckVectors % item.num_parts != item.part) continue;
        const std::byte* at = item.frame + section.offset + i / vectors * section.head_stride +
                              i % vectors * kVectorBytes;
        for (uint32_t begin = 0; begin < kVectorBytes; begin += sizeof(uint32_t)) {
          uint32_t word;
          std::memcpy(&word, at + begin, sizeof(word));
          flags[item.flag_index] |= BreaksRule(word, section.rule, section.bank_size);
        }
      }
    }
  }
}

}  // namespace pkv
