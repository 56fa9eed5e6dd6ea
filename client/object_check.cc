#include "client/object_check.h"

#include "absl/strings/str_cat.h"
#include "pkv/block/object_view.h"
#include "pkv/block/prefix_hash.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// Checking so many bytes takes several times as long as waking the threads that share it.
constexpr size_t kMinSharedBytes = size_t{1} << 20;

absl::StatusOr<ObjectHead> ParseHead(const ObjectKey& key, std::span<const std::byte> bytes) {
  ObjectHead head;
  PKV_ASSIGN_OR_RETURN(head.header, ParseHeader(bytes));
  if (head.header.key() != key) {
    return absl::DataLossError(absl::StrCat("head is of ", head.header.id.ToShortHex(),
                                            ", variant ", head.header.variant().name));
  }
  if (bytes.size() != FramesOffset(head.header.num_layers)) {
    return absl::DataLossError(absl::StrCat("head has ", bytes.size(), " bytes, not ",
                                            FramesOffset(head.header.num_layers)));
  }
  if (head.header.object_bytes > kMaxObjectBytes) {
    return absl::DataLossError(
        absl::StrCat("object of ", head.header.object_bytes, " bytes, limit ", kMaxObjectBytes));
  }
  PKV_ASSIGN_OR_RETURN(head.frame_crcs, ParseFrameTable(bytes.subspan(sizeof(ObjectHeader)),
                                                        head.header.num_layers));
  return head;
}

}  // namespace

std::string ObjectName(const ObjectKey& key, int object_index) {
  return absl::StrCat("object ", object_index, " (", key.id.ToShortHex(), ", variant ",
                      key.variant.name, ")");
}

absl::StatusOr<ObjectHead> ParseObjectHead(const ObjectKey& key, int object_index,
                                           std::span<const std::byte> head) {
  absl::StatusOr<ObjectHead> parsed = ParseHead(key, head);
  if (parsed.ok()) return parsed;
  // A geometry that is impossible was not stored by us either.
  const absl::Status& status = parsed.status();
  const absl::StatusCode code =
      absl::IsInvalidArgument(status) ? absl::StatusCode::kDataLoss : status.code();
  return absl::Status(code, absl::StrCat(ObjectName(key, object_index), ": ", status.message()));
}

absl::Status CheckLayerFrame(const ObjectHead& head, int object_index, int layer,
                             std::span<const std::byte> frame) {
  absl::Status status = VerifyFrame(frame, layer, head.frame_crcs[layer]);
  if (status.ok()) status = CheckFrameNumbers(head.header, layer, frame);
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat("object ", object_index, " (", head.header.id.ToShortHex(),
                                   "): ", status.message()));
}

absl::Status CheckLayerFrames(std::span<const LayerFrame> frames, int layer, ThreadPool* pool,
                              int* damaged) {
  size_t bytes = 0;
  for (const LayerFrame& frame : frames) bytes += frame.bytes.size();
  std::vector<absl::Status> statuses(frames.size());
  ParallelFor(
      bytes >= kMinSharedBytes ? pool : nullptr, static_cast<int>(frames.size()), [&](int i) {
        statuses[i] =
            CheckLayerFrame(*frames[i].head, frames[i].object_index, layer, frames[i].bytes);
      });
  for (size_t i = 0; i < frames.size(); ++i) {
    if (statuses[i].ok()) continue;
    *damaged = frames[i].object_index;
    return statuses[i];
  }
  return absl::OkStatus();
}

absl::Status CheckTableContent(const ObjectHeader& header, int object_index,
                               std::span<const std::byte> frames) {
  if (header.kind != ObjectKind::kTable) return absl::OkStatus();
  const Digest id =
      TableId(header.profile, header.shape(), header.num_patterns_k, header.num_patterns_v, frames);
  if (id == header.id) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("object ", object_index, ": table id is ",
                                          header.id.ToShortHex(), ", its content hashes to ",
                                          id.ToShortHex()));
}

}  // namespace pkv
