#include "proto/transport/nccl/transfer_plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// Adds a piece, and sees whether all still lie in one.
void Append(const TransferGroup::Piece& piece, bool in_host_memory, TransferGroup& group) {
  if (group.pieces.empty()) group.contiguous = piece.data;
  const bool follows = group.contiguous != nullptr && piece.data == group.contiguous + group.bytes;
  if (in_host_memory || !follows) group.contiguous = nullptr;
  group.pieces.push_back(piece);
  group.bytes += piece.bytes;
}

}  // namespace

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

absl::StatusOr<LayerSource> LayerSource::Of(std::span<const LayerSpans> layers) {
  if (layers.empty()) return absl::InvalidArgumentError("a transfer of no layers");
  LayerSource source{.num_layers = layers.size(),
                     .layer = [layers](size_t layer_index) { return layers[layer_index]; }};
  for (size_t l = 0; l < layers.size(); ++l) {
    PKV_RETURN_IF_ERROR(CheckLayer(layers[l], l));
    for (const DeviceSpan& span : layers[l].spans) source.total_bytes += span.bytes;
  }
  return source;
}

TransferPlan::TransferPlan(LayerSource source, uint64_t group_bytes)
    : source_(std::move(source)),
      group_bytes_(group_bytes),
      num_groups_((source_.total_bytes + group_bytes - 1) / group_bytes) {
  PKV_CHECK(group_bytes != 0 && group_bytes % kSpanAlignmentBytes == 0, group_bytes);
  PKV_CHECK(source_.total_bytes != 0 && source_.total_bytes % kSpanAlignmentBytes == 0,
            source_.total_bytes);
}

uint64_t TransferPlan::BytesOf(size_t group_index) const {
  return std::min(group_bytes_, source_.total_bytes - group_index * group_bytes_);
}

bool TransferPlan::IsNextKnown() const { return !source_.is_known || source_.is_known(); }

absl::Status TransferPlan::TakeLayer(TransferGroup& group) {
  if (num_layers_taken_ == source_.num_layers) {
    return absl::InvalidArgumentError(absl::StrCat(
        source_.num_layers, " layers have fewer bytes than their total, ", source_.total_bytes));
  }
  PKV_ASSIGN_OR_RETURN(layer_, source_.layer(num_layers_taken_));
  PKV_RETURN_IF_ERROR(CheckLayer(layer_, num_layers_taken_));
  ++num_layers_taken_;
  span_index_ = span_begin_ = 0;
  if (layer_.ready != nullptr) group.ready.push_back(layer_.ready);
  return absl::OkStatus();
}

absl::Status TransferPlan::Next(TransferGroup& group) {
  PKV_CHECK(next_group_ < num_groups_, next_group_);
  const uint64_t group_bytes = BytesOf(next_group_++);
  group.pieces.clear();
  group.ready.clear();
  group.bytes = 0;
  // The stream that moves this group may be another than the last one's.
  if (span_index_ < layer_.spans.size() && layer_.ready != nullptr) {
    group.ready.push_back(layer_.ready);
  }
  while (group.bytes < group_bytes) {
    if (span_index_ == layer_.spans.size()) PKV_RETURN_IF_ERROR(TakeLayer(group));
    const DeviceSpan& span = layer_.spans[span_index_];
    const uint64_t bytes = std::min(span.bytes - span_begin_, group_bytes - group.bytes);
    Append({.data = span.data + span_begin_,
            .bytes = bytes,
            .offset = group.bytes,
            .bytes_after = span.bytes - span_begin_ - bytes,
            .span = span,
            .layer = num_layers_taken_ - 1,
            .index = static_cast<uint32_t>(span_index_),
            .checksum = layer_.checksums.empty() ? 0 : layer_.checksums[span_index_],
            .rules = layer_.rules.empty() ? nullptr : layer_.rules[span_index_]},
           layer_.in_host_memory, group);
    span_begin_ += bytes;
    if (span_begin_ < span.bytes) continue;
    span_begin_ = 0;
    ++span_index_;
  }
  const bool at_layer_end = span_index_ == layer_.spans.size();
  group.layers_done = at_layer_end ? num_layers_taken_ : num_layers_taken_ - 1;
  if (next_group_ == num_groups_ && group.layers_done < source_.num_layers) {
    return absl::InvalidArgumentError(absl::StrCat(
        source_.num_layers, " layers have more bytes than their total, ", source_.total_bytes));
  }
  return absl::OkStatus();
}

}  // namespace pkv
