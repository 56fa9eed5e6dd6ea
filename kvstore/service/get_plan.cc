#include "kvstore/service/get_plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/service/logical_bytes.h"

namespace pkv {

GetPlan::GetPlan(BlockStore* store, const GetSpec& spec)
    : store_(store),
      message_bytes_(spec.message_bytes),
      leases_(spec.keys.size()),
      heads_(spec.keys.size()),
      logical_frame_bytes_(spec.keys.size()),
      statuses_(spec.keys.size()),
      layer_end_(spec.layer_end),
      layer_(spec.layer_begin) {
  std::vector<Lease> found = store_->FindAll(spec.keys);
  int num_layers_max = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    if (!found[i]) {
      statuses_[i] =
          absl::NotFoundError(absl::StrCat(spec.keys[i].id.ToShortHex(), " is not stored"));
      continue;
    }
    leases_[i] = std::make_shared<const Lease>(std::move(found[i]));
    const absl::StatusOr<ObjectHeader> header = leases_[i]->VerifyHead();
    if (!header.ok()) {
      store_->Quarantine(*leases_[i]);
      Drop(static_cast<int>(i), header.status());
    } else if (spec.layer_end > leases_[i]->num_layers()) {
      Drop(static_cast<int>(i),
           absl::InvalidArgumentError(absl::StrCat("layer_end ", spec.layer_end, " > ",
                                                   leases_[i]->num_layers(), " layers")));
    } else {
      heads_[i] = leases_[i]->head();
      logical_frame_bytes_[i] = LogicalFrameBytes(*header);
      num_layers_max = std::max(num_layers_max, leases_[i]->num_layers());
    }
  }
  // With nothing to send there is nothing left to do.
  if (num_layers_max == 0) {
    layer_end_ = layer_;
  } else if (layer_end_ == 0) {
    layer_end_ = num_layers_max;
  }
}

void GetPlan::Drop(int object_index, const absl::Status& status) {
  statuses_[object_index] = status;
  leases_[object_index].reset();
}

bool GetPlan::VerifyCurrent() {
  const absl::Status status = leases_[object_]->VerifyFrame(layer_);
  if (status.ok()) return true;
  store_->Quarantine(*leases_[object_]);
  Drop(static_cast<int>(object_), status);
  return false;
}

// Adds what fits of the current frame. False when the message is full.
bool GetPlan::TakeFrame(Message& message) {
  const std::shared_ptr<const Lease>& lease = leases_[object_];
  if (lease == nullptr || layer_ >= lease->num_layers()) return true;
  if (message.payload_bytes >= message_bytes_) return false;
  if (offset_ == 0 && !VerifyCurrent()) return true;
  const std::span<const std::byte> frame = lease->frame(layer_);
  const uint64_t taken =
      std::min<uint64_t>(frame.size() - offset_, message_bytes_ - message.payload_bytes);
  message.pieces.push_back({.object_index = static_cast<int>(object_),
                            .layer = layer_,
                            .offset = offset_,
                            .bytes = frame.subspan(offset_, taken),
                            .lease = lease});
  message.payload_bytes += taken;
  offset_ += taken;
  if (offset_ < frame.size()) return false;
  offset_ = 0;
  message.logical_bytes += logical_frame_bytes_[object_];
  return true;
}

GetPlan::Message GetPlan::Next() {
  Message message;
  while (layer_ < layer_end_ && TakeFrame(message)) {
    if (++object_ < leases_.size()) continue;
    object_ = 0;
    ++layer_;
  }
  message.layers_done = layer_;
  return message;
}

}  // namespace pkv
