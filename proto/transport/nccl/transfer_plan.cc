#include "proto/transport/nccl/transfer_plan.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

absl::Status CheckLayer(const LayerSpans& layer, size_t layer_index) {
  if (layer.spans.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer_index, " has no spans"));
  }
  if (!layer.checksums.empty() && layer.checksums.size() != layer.spans.size()) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer_index, " has ",
                                                   layer.checksums.size(), " checksums for ",
                                                   layer.spans.size(), " spans"));
  }
  if (!layer.rules.empty() && layer.rules.size() != layer.spans.size()) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer_index, " has ",
                                                   layer.rules.size(), " rules for ",
                                                   layer.spans.size(), " spans"));
  }
  for (size_t i = 0; i < layer.spans.size(); ++i) {
    const DeviceSpan& span = layer.spans[i];
    const bool aligned = reinterpret_cast<uintptr_t>(span.data) % kSpanAlignmentBytes == 0 &&
                         span.bytes % kSpanAlignmentBytes == 0;
    if (span.data == nullptr || span.bytes == 0 || !aligned) {
      return absl::InvalidArgumentError(absl::StrCat("layer ", layer_index, " span ", i, " of ",
                                                     span.bytes, " bytes: empty or not aligned to ",
                                                     kSpanAlignmentBytes));
    }
  }
  return absl::OkStatus();
}

std::byte* Contiguous(const std::vector<TransferPlan::Piece>& pieces) {
  const std::byte* expected = pieces.front().data;
  for (const TransferPlan::Piece& piece : pieces) {
    if (piece.data != expected) return nullptr;
    expected += piece.bytes;
  }
  return pieces.front().data;
}

}  // namespace

absl::StatusOr<TransferPlan> TransferPlan::Make(std::span<const LayerSpans> layers,
                                                uint64_t group_bytes) {
  PKV_CHECK(group_bytes != 0 && group_bytes % kSpanAlignmentBytes == 0, group_bytes);
  if (layers.empty()) return absl::InvalidArgumentError("a transfer of no layers");
  TransferPlan plan;
  for (size_t l = 0; l < layers.size(); ++l) {
    PKV_RETURN_IF_ERROR(CheckLayer(layers[l], l));
    const auto layer_index = static_cast<uint32_t>(l);
    for (size_t i = 0; i < layers[l].spans.size(); ++i) {
      const DeviceSpan& span = layers[l].spans[i];
      for (uint64_t begin = 0; begin < span.bytes;) {
        if (plan.groups.empty() || plan.groups.back().bytes == group_bytes) {
          plan.groups.push_back({.first_layer = layer_index, .layers_done = layer_index});
        }
        Group& group = plan.groups.back();
        const uint64_t bytes = std::min(span.bytes - begin, group_bytes - group.bytes);
        group.pieces.push_back({span.data + begin, bytes, group.bytes});
        group.bytes += bytes;
        group.end_layer = layer_index + 1;
        begin += bytes;
      }
      plan.groups.back().ending.push_back({span, layer_index, static_cast<uint32_t>(i),
                                           layers[l].rules.empty() ? nullptr : layers[l].rules[i]});
    }
    plan.groups.back().layers_done = layer_index + 1;
  }
  for (Group& group : plan.groups) {
    const auto of_group = layers.subspan(group.first_layer, group.end_layer - group.first_layer);
    const bool from_host =
        std::any_of(of_group.begin(), of_group.end(),
                    [](const LayerSpans& layer) { return layer.in_host_memory; });
    if (!from_host) group.contiguous = Contiguous(group.pieces);
  }
  return plan;
}

}  // namespace pkv
