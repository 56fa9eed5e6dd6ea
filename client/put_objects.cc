#include "client/put_objects.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "client/put_call.h"
#include "pkv/block/object_view.h"
#include "proto/base/status_macros.h"
#include "proto/transport/data_frame.h"

namespace pkv {
namespace {

using Bytes = std::span<const std::byte>;

// An object still to be stored.
struct Pending {
  size_t object_index;
  Bytes bytes;
  ObjectView view;
};

absl::Status WriteAndCommit(PutCall& call, std::span<const Pending> batch) {
  int num_layers = 0;
  for (const Pending& object : batch) {
    num_layers = std::max<int>(num_layers, object.view.header().num_layers);
  }
  std::vector<Bytes> frames(batch.size());
  for (int layer = 0; layer < num_layers; ++layer) {
    for (size_t i = 0; i < batch.size(); ++i) {
      const bool has_layer = layer < batch[i].view.header().num_layers;
      frames[i] = has_layer ? batch[i].view.frame(layer) : Bytes();
    }
    PKV_RETURN_IF_ERROR(call.WriteLayer(layer, frames));
  }
  for (size_t i = 0; i < batch.size(); ++i) {
    const uint64_t head_bytes = FramesOffset(batch[i].view.header().num_layers);
    PKV_RETURN_IF_ERROR(call.Commit(static_cast<int>(i), batch[i].bytes.first(head_bytes)));
  }
  return absl::OkStatus();
}

std::vector<PutOutcome> PutBatch(const std::shared_ptr<ClientCore>& core,
                                 std::span<const Pending> batch, absl::Time deadline) {
  std::vector<ObjectDescriptor> descriptors;
  for (const Pending& object : batch) {
    const ObjectHeader& header = object.view.header();
    descriptors.push_back({header.key(), header.num_layers, header.frame_bytes});
  }
  auto call = PutCall::Start(core, descriptors, deadline);
  if (!call.ok()) return std::vector<PutOutcome>(batch.size(), PutOutcome{call.status(), false});
  // A stream that breaks while writing says why for each object.
  WriteAndCommit(**call, batch).IgnoreError();
  return (*call)->Collect();
}

// How many objects from the front of `pending` go into one stream.
size_t BatchSize(std::span<const Pending> pending) {
  uint64_t bytes = 0;
  size_t count = 0;
  while (count < pending.size() && count < static_cast<size_t>(kMaxObjectsPerCall)) {
    bytes += pending[count].bytes.size();
    if (count > 0 && bytes > kPutStreamBytes) break;
    ++count;
  }
  return count;
}

// Tries every pending object once; returns those worth another attempt.
std::vector<Pending> PutOnce(const std::shared_ptr<ClientCore>& core, std::vector<Pending> pending,
                             absl::Time deadline, std::vector<PutOutcome>& outcomes) {
  std::vector<Pending> again;
  for (std::span<const Pending> left = pending; !left.empty();) {
    const std::span<const Pending> batch = left.first(BatchSize(left));
    const std::vector<PutOutcome> results = PutBatch(core, batch, deadline);
    for (size_t i = 0; i < batch.size(); ++i) {
      outcomes[batch[i].object_index] = results[i];
      const absl::Status& status = results[i].status;
      // Aborted: what stood under the key was damaged and is gone. FailedPrecondition behind an
      // object that failed: it may be the table this one refers to.
      if (IsRetryable(status) || absl::IsAborted(status) ||
          (absl::IsFailedPrecondition(status) && !again.empty())) {
        again.push_back(batch[i]);
      }
    }
    left = left.subspan(batch.size());
  }
  return again;
}

}  // namespace

std::vector<PutOutcome> PutObjects(const std::shared_ptr<ClientCore>& core,
                                   std::span<const std::span<const std::byte>> objects) {
  const absl::Time deadline = core->clock->MonotonicNow() + core->options.put_deadline;
  ++core->counters.puts;
  CallRecord record = core->Record(CallMethod::kPut);
  std::vector<PutOutcome> outcomes(objects.size());
  std::vector<Pending> pending;
  for (size_t i = 0; i < objects.size(); ++i) {
    absl::StatusOr<ObjectView> view = ObjectView::Parse(objects[i]);
    if (view.ok()) {
      pending.push_back({i, objects[i], *std::move(view)});
    } else {
      outcomes[i].status = view.status();
    }
  }
  Backoff backoff = core->MakeBackoff();
  for (int attempt = 1; !pending.empty(); ++attempt) {
    pending = PutOnce(core, std::move(pending), deadline, outcomes);
    const absl::Duration pause = backoff.Next();
    if (pending.empty() || attempt >= core->options.max_attempts ||
        core->clock->MonotonicNow() + pause >= deadline) {
      break;
    }
    core->counters.retries += pending.size();
    const RetryPause waiting = core->PauseOf(CallMethod::kPut);
    absl::SleepFor(pause);
  }
  for (const PutOutcome& outcome : outcomes) core->counters.CountEnd(outcome.status);
  record.End(CodeOf(outcomes));
  return outcomes;
}

}  // namespace pkv
