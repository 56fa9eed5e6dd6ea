#include "pkv/block/object_builder.h"

#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "pkv/block/object_view.h"
#include "pkv/block/prefix_hash.h"
#include "proto/base/checksum.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace pkv {

absl::StatusOr<ObjectBuilder> ObjectBuilder::Make(const ObjectHeader& header) {
  PKV_ASSIGN_OR_RETURN(const ObjectSizes sizes, ComputeObjectSizes(header));
  ObjectBuilder builder(header, AlignedBuffer(sizes.object_bytes));
  builder.header_.frame_bytes = sizes.frame_bytes;
  builder.header_.object_bytes = sizes.object_bytes;
  return builder;
}

ObjectBuilder::ObjectBuilder(const ObjectHeader& header, AlignedBuffer buffer)
    : header_(header), buffer_(std::move(buffer)) {}

std::span<std::byte> ObjectBuilder::frame(int layer) {
  const std::span<const std::byte> frame = std::as_const(*this).frame(layer);
  return buffer_.span().subspan(static_cast<size_t>(frame.data() - buffer_.data()), frame.size());
}

std::span<const std::byte> ObjectBuilder::frame(int layer) const {
  PKV_CHECK(layer >= 0 && layer < header_.num_layers, layer, " of ", header_.num_layers);
  const auto frame_bytes = static_cast<size_t>(header_.frame_bytes);
  return buffer_.span().subspan(
      static_cast<size_t>(FramesOffset(header_.num_layers)) + layer * frame_bytes, frame_bytes);
}

absl::Status ObjectBuilder::Seal() {
  PKV_ASSIGN_OR_RETURN(const ObjectSizes sizes, ComputeObjectSizes(header_));
  if (sizes.frame_bytes != header_.frame_bytes || sizes.object_bytes != buffer_.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "geometry was changed after Make(): frame and object bytes ", sizes.frame_bytes, " and ",
        sizes.object_bytes, ", reserved ", header_.frame_bytes, " and ", buffer_.size()));
  }
  std::vector<uint32_t> crcs;
  crcs.reserve(header_.num_layers + 1);
  for (int layer = 0; layer < header_.num_layers; ++layer) {
    PKV_RETURN_IF_ERROR(CheckFrameNumbers(header_, layer, frame(layer)));
    crcs.push_back(Crc32c(frame(layer)));
  }
  crcs.push_back(Crc32c(std::as_bytes(std::span(crcs))));
  if (header_.kind == ObjectKind::kTable) {
    header_.id =
        TableId(header_.profile, header_.shape(), header_.num_patterns_k, header_.num_patterns_v,
                buffer_.span().subspan(FramesOffset(header_.num_layers)));
  }
  PKV_RETURN_IF_ERROR(SealHeader(header_, buffer_.span().first<sizeof(ObjectHeader)>()));
  std::memcpy(buffer_.data() + sizeof(ObjectHeader), crcs.data(), crcs.size() * sizeof(uint32_t));
  return absl::OkStatus();
}

std::span<const std::byte> ObjectBuilder::head() const {
  return buffer_.span().first(FramesOffset(header_.num_layers));
}

}  // namespace pkv
