#include "client/get_assembly.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace pkv {

GetAssembly::GetAssembly(std::vector<ObjectKey> keys, ObjectNumbering numbering, int first_layer,
                         std::vector<std::string> heads)
    : numbering_(numbering), num_complete_layers_(first_layer) {
  PKV_CHECK(heads.empty() || heads.size() == keys.size(), heads.size(), " of ", keys.size());
  objects_.resize(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) objects_[i].key = std::move(keys[i]);
  for (size_t i = 0; i < heads.size(); ++i) objects_[i].head_bytes = std::move(heads[i]);
}

int GetAssembly::BeginAttempt() {
  attempt_has_manifest_ = false;
  for (Object& object : objects_) {
    const uint64_t complete_bytes =
        object.head.header.frame_bytes * static_cast<uint64_t>(num_complete_layers_);
    object.received_bytes = std::min(object.received_bytes, complete_bytes);
  }
  // Layers above the cut that some objects had already come again for all.
  for (int layer = num_complete_layers_; layer < num_layers(); ++layer) {
    layer_pending_[layer] =
        static_cast<int>(std::count_if(objects_.begin(), objects_.end(), [&](const Object& object) {
          return layer < object.head.header.num_layers;
        }));
  }
  return num_complete_layers_;
}

absl::Status GetAssembly::OnFrame(DecodedDataFrame& frame) {
  if (frame.control.has_staged()) return absl::DataLossError("staged payload in a get");
  if (frame.control.has_manifest()) PKV_RETURN_IF_ERROR(OnManifest(frame.control.manifest()));
  if (frame.control.pieces_size() > 0 && !attempt_has_manifest_) {
    return absl::DataLossError(
        absl::StrCat(frame.control.pieces_size(), " pieces before the manifest"));
  }
  for (const v1::Piece& piece : frame.control.pieces()) {
    PKV_RETURN_IF_ERROR(OnPiece(piece, frame.payload));
  }
  if (frame.control.has_trailer()) PKV_RETURN_IF_ERROR(OnTrailer(frame.control.trailer()));
  return absl::OkStatus();
}

absl::Status GetAssembly::OnManifest(const v1::GetManifest& manifest) {
  if (attempt_has_manifest_) return absl::DataLossError("second manifest in one stream");
  if (manifest.heads_size() != num_objects()) {
    return absl::DataLossError(absl::StrCat("manifest lists ", manifest.heads_size(), " objects, ",
                                            num_objects(), " were asked for"));
  }
  for (int i = 0; i < num_objects(); ++i) {
    if (manifest.heads(i).empty()) {
      return absl::NotFoundError(absl::StrCat(NameOf(i), " is not stored"));
    }
  }
  uint64_t total_bytes = 0;
  for (int i = 0; i < num_objects(); ++i) {
    PKV_RETURN_IF_ERROR(OnHead(manifest.heads(i), i));
    total_bytes += objects_[i].head.header.object_bytes;  // at most 4,096 times kMaxObjectBytes
  }
  if (total_bytes > kMaxGetBytes) {
    return absl::DataLossError(
        absl::StrCat("objects of ", total_bytes, " bytes, limit ", kMaxGetBytes));
  }
  if (!has_manifest_) {
    for (const Object& object : objects_) {
      const auto layers = static_cast<size_t>(object.head.header.num_layers);
      if (layer_pending_.size() < layers) layer_pending_.resize(layers);
      for (size_t layer = num_complete_layers_; layer < layers; ++layer) ++layer_pending_[layer];
    }
  }
  has_manifest_ = attempt_has_manifest_ = true;
  return absl::OkStatus();
}

absl::Status GetAssembly::OnHead(const std::string& head_bytes, int object_index) {
  Object& object = objects_[object_index];
  if (!object.head_bytes.empty() && head_bytes != object.head_bytes) {
    return absl::AbortedError(
        absl::StrCat(NameOf(object_index), ": replaced by other bytes while it was being fetched"));
  }
  if (has_manifest_) return absl::OkStatus();
  PKV_ASSIGN_OR_RETURN(object.head, ParseObjectHead(object.key, numbering_(object_index),
                                                    std::as_bytes(std::span(head_bytes))));
  object.head_bytes = head_bytes;
  object.received_bytes =
      object.head.header.frame_bytes * static_cast<uint64_t>(num_complete_layers_);
  return absl::OkStatus();
}

absl::Status GetAssembly::OnPiece(const v1::Piece& piece, PayloadReader& payload) {
  if (piece.object_index() >= objects_.size()) {
    return absl::DataLossError(
        absl::StrCat("piece of object ", piece.object_index(), ", there are ", objects_.size()));
  }
  Object& object = objects_[piece.object_index()];
  const uint64_t frame_bytes = object.head.header.frame_bytes;
  // A transfer that resumes finds every object at the same layer: those that end earlier are done.
  const uint64_t layer = object.received_bytes / frame_bytes;
  const uint64_t offset = object.received_bytes % frame_bytes;
  if (layer >= object.head.header.num_layers || piece.layer() != layer ||
      piece.offset() != offset || piece.length() == 0 || piece.length() > frame_bytes - offset) {
    return absl::DataLossError(absl::StrCat(
        NameOf(static_cast<int>(piece.object_index())), ": piece of layer ", piece.layer(), " at ",
        piece.offset(), " of ", piece.length(), " bytes, next is layer ", layer, " at ", offset,
        " of ", object.head.header.num_layers, " frames of ", frame_bytes, " bytes"));
  }
  if (object.buffer.size() == 0) {
    object.buffer =
        AlignedBuffer::ForOverwrite(static_cast<size_t>(object.head.header.object_bytes));
    std::memcpy(object.buffer.data(), object.head_bytes.data(), object.head_bytes.size());
  }
  PKV_RETURN_IF_ERROR(payload.Read(object.buffer.span().subspan(
      object.head_bytes.size() + object.received_bytes, piece.length())));
  object.received_bytes += piece.length();
  received_bytes_ += piece.length();
  if (offset + piece.length() == frame_bytes) {
    --layer_pending_[layer];
    while (num_complete_layers_ < num_layers() && layer_pending_[num_complete_layers_] == 0) {
      ++num_complete_layers_;
    }
  }
  return absl::OkStatus();
}

absl::Status GetAssembly::OnTrailer(const v1::GetTrailer& trailer) const {
  for (const v1::ObjectStatus& status : trailer.statuses()) {
    if (status.code() == 0) continue;
    const std::string name = status.object_index() < objects_.size()
                                 ? NameOf(static_cast<int>(status.object_index()))
                                 : absl::StrCat("object ", status.object_index());
    return absl::Status(static_cast<absl::StatusCode>(status.code()),
                        absl::StrCat(name, ": ", status.message()));
  }
  if (!complete()) {
    return absl::DataLossError(
        absl::StrCat("trailer after ", num_complete_layers_, " of ", num_layers(), " layers"));
  }
  return absl::OkStatus();
}

const ObjectHeader& GetAssembly::header(int object_index) const {
  PKV_CHECK(object_index >= 0 && object_index < num_objects(), object_index, " of ", num_objects());
  return objects_[object_index].head.header;
}

std::span<const std::byte> GetAssembly::frame(int object_index, int layer) const {
  const ObjectHeader& of = header(object_index);
  PKV_CHECK(layer >= 0 && layer < of.num_layers, layer, " of ", of.num_layers);
  const Object& object = objects_[object_index];
  PKV_CHECK(object.buffer.size() == of.object_bytes, "object ", object_index, " has ",
            object.buffer.size(), " of ", of.object_bytes, " bytes");
  const auto frame_bytes = static_cast<size_t>(of.frame_bytes);
  return object.buffer.span().subspan(object.head_bytes.size() + layer * frame_bytes, frame_bytes);
}

const ObjectHead& GetAssembly::head(int object_index) const {
  PKV_CHECK(object_index >= 0 && object_index < num_objects(), object_index, " of ", num_objects());
  return objects_[object_index].head;
}

AlignedBuffer GetAssembly::TakeObject(int object_index) {
  PKV_CHECK(complete() && object_index >= 0 && object_index < num_objects(), object_index, " of ",
            num_objects(), ", ", num_complete_layers_, " layers");
  return std::exchange(objects_[object_index].buffer, AlignedBuffer());
}

}  // namespace pkv
