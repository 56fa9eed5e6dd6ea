#include "client/get_call.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"
#include "proto/transport/convert.h"
#include "proto/transport/data_frame.h"

namespace pkv {
namespace {

constexpr int kAllLayers = -1;

grpc::ByteBuffer ToMessage(const v1::GetRequest& request) {
  const grpc::Slice slice(request.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace

GetCall::GetCall(std::shared_ptr<ClientCore> core, std::vector<ObjectKey> keys, absl::Time deadline,
                 CallRecord record, ObjectNumbering numbering, int first_layer,
                 std::vector<std::string> heads)
    : core_(std::move(core)),
      keys_(std::move(keys)),
      deadline_(deadline),
      numbering_(numbering),
      first_layer_(first_layer),
      backoff_(core_->MakeBackoff()),
      assembly_(keys_, numbering, first_layer, std::move(heads)),
      record_(std::move(record)) {
  if (keys_.empty() || keys_.size() > kMaxObjectsPerCall) {
    MutexLock lock(&mu_);
    Fail(absl::InvalidArgumentError(
        absl::StrCat(keys_.size(), " keys in one get, not in 1..", kMaxObjectsPerCall)));
    return;
  }
  OpenAttempt();
}

GetCall::~GetCall() {
  std::unique_ptr<MessageStream> stream;
  {
    MutexLock lock(&mu_);
    stream = std::move(stream_);
  }
}

void GetCall::OpenAttempt() {
  ++num_attempts_;
  v1::GetRequest request;
  for (const ObjectKey& key : keys_) *request.add_objects() = ToProto(key);
  request.set_message_bytes(core_->options.message_bytes);
  std::unique_ptr<MessageStream> old;
  {
    MutexLock lock(&mu_);
    request.set_layer_begin(static_cast<uint32_t>(assembly_.BeginAttempt()));
    old = std::move(stream_);
    ended_ = false;
    last_progress_ = core_->clock->MonotonicNow();
  }
  old.reset();
  const absl::Duration timeout = deadline_ - core_->clock->MonotonicNow();
  auto stream = core_->connection->OpenStream(StreamMethod::kGet, timeout, this);
  stream->Send(ToMessage(request));
  stream->HalfClose();
  MutexLock lock(&mu_);
  stream_ = std::move(stream);
  if (!failure_.ok()) stream_->Cancel();
}

absl::Status GetCall::OnMessage(grpc::ByteBuffer& message) {
  absl::StatusOr<DecodedDataFrame> frame = DecodeDataFrame(message);
  if (!frame.ok()) {
    return absl::DataLossError(absl::StrCat("message of a get: ", frame.status().message()));
  }
  MutexLock lock(&mu_);
  last_progress_ = core_->clock->MonotonicNow();
  const uint64_t before = assembly_.received_bytes();
  const absl::Status status = assembly_.OnFrame(*frame);
  core_->counters.grpc_get_bytes += assembly_.received_bytes() - before;
  changed_.SignalAll();
  return status;
}

void GetCall::OnEnd(const absl::Status& status) {
  MutexLock lock(&mu_);
  ended_ = true;
  end_status_ = status;
  changed_.SignalAll();
}

void GetCall::Fail(const absl::Status& status) {
  if (!failure_.ok()) return;
  failure_ = status;
  core_->counters.CountEnd(status);
  record_.End(status.code());
  if (stream_ != nullptr) stream_->Cancel();
  changed_.SignalAll();
}

bool GetCall::HasArrived(int num_layers) const {
  if (!assembly_.has_manifest()) return false;
  return num_layers == kAllLayers ? assembly_.complete()
                                  : assembly_.num_complete_layers() >= num_layers;
}

GetCall::Step GetCall::NextStep(int num_layers) {
  const absl::Time waiting_since = core_->clock->MonotonicNow();
  while (failure_.ok()) {
    if (HasArrived(num_layers)) return Step::kReady;
    if (ended_) {
      PrepareRetry();
      if (failure_.ok()) return Step::kOpen;
      break;
    }
    // A caller that was away for long gives the server its time again.
    const absl::Duration patience = core_->options.progress_timeout;
    const absl::Time stalled = std::max(last_progress_, waiting_since) + patience;
    const absl::Time now = core_->clock->MonotonicNow();
    if (now >= deadline_) {
      Fail(absl::DeadlineExceededError(absl::StrCat(
          "get of ", keys_.size(), " objects not done in ",
          absl::FormatDuration(core_->options.get_deadline), ": ", assembly_.num_complete_layers(),
          " layers, ", assembly_.received_bytes(), " bytes arrived")));
    } else if (now >= stalled) {
      Fail(absl::DeadlineExceededError(absl::StrCat("get: nothing arrived for ",
                                                    absl::FormatDuration(patience), " after ",
                                                    assembly_.received_bytes(), " bytes")));
    } else {
      changed_.WaitWithTimeout(&mu_, std::min(stalled, deadline_) - now);
    }
  }
  return Step::kFailed;
}

void GetCall::PrepareRetry() {
  if (end_status_.ok()) {
    Fail(absl::DataLossError(absl::StrCat("get ended after ", assembly_.num_complete_layers(),
                                          " complete layers and ", assembly_.received_bytes(),
                                          " bytes")));
    return;
  }
  const absl::Duration pause = backoff_.Next();
  const absl::Time resume = core_->clock->MonotonicNow() + pause;
  if (!IsRetryable(end_status_) || num_attempts_ >= core_->options.max_attempts ||
      resume >= deadline_) {
    Fail(end_status_);
    return;
  }
  ++core_->counters.retries;
  const RetryPause waiting = core_->PauseOf(CallMethod::kGet);
  for (absl::Time now = core_->clock->MonotonicNow(); failure_.ok() && now < resume;
       now = core_->clock->MonotonicNow()) {
    changed_.WaitWithTimeout(&mu_, resume - now);
  }
}

absl::Status GetCall::WaitUntilArrived(int num_layers) {
  for (;;) {
    {
      MutexLock lock(&mu_);
      switch (NextStep(num_layers)) {
        case Step::kReady:
          return absl::OkStatus();
        case Step::kFailed:
          return failure_;
        case Step::kOpen:
          break;
      }
    }
    OpenAttempt();
  }
}

absl::Status GetCall::WaitForManifest() { return WaitUntilArrived(0); }

absl::Status GetCall::WaitForLayer(int layer) {
  PKV_RETURN_IF_ERROR(WaitForManifest());
  {
    MutexLock lock(&mu_);
    if (layer < 0 || layer >= assembly_.num_layers()) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", layer, " not in [0, ", assembly_.num_layers(), ")"));
    }
  }
  PKV_RETURN_IF_ERROR(WaitUntilArrived(layer + 1));
  return VerifyLayer(layer);
}

absl::Status GetCall::WaitForAll() {
  PKV_RETURN_IF_ERROR(WaitForManifest());
  int num_layers;
  {
    MutexLock lock(&mu_);
    num_layers = assembly_.num_layers();
  }
  // One after the other, so that checking goes on while later layers arrive.
  for (int layer = 0; layer < num_layers; ++layer) PKV_RETURN_IF_ERROR(WaitForLayer(layer));
  PKV_RETURN_IF_ERROR(WaitUntilArrived(kAllLayers));
  return VerifyTables();
}

absl::Status GetCall::VerifyLayer(int layer) {
  std::vector<LayerFrame> frames;
  {
    MutexLock lock(&mu_);
    if (verified_layers_.empty()) {
      verified_layers_.resize(assembly_.num_layers());
      // Nobody asked for those, of which an object that was replaced may have fewer.
      std::fill_n(verified_layers_.begin(), std::min<size_t>(first_layer_, verified_layers_.size()),
                  true);
    }
    if (verified_layers_[layer]) return absl::OkStatus();
    for (int i = 0; i < assembly_.num_objects(); ++i) {
      const ObjectHead& head = assembly_.head(i);
      if (layer >= head.header.num_layers) continue;
      frames.push_back({&head, numbering_(i), assembly_.frame(i, layer)});
    }
  }
  int damaged = 0;
  const absl::Status status = CheckLayerFrames(frames, layer, core_->check_pool.get(), &damaged);
  if (!status.ok()) {
    MutexLock lock(&mu_);
    Fail(status);
    return failure_;
  }
  verified_layers_[layer] = true;
  if (std::find(verified_layers_.begin(), verified_layers_.end(), false) ==
      verified_layers_.end()) {
    MutexLock lock(&mu_);
    record_.End(absl::StatusCode::kOk);
  }
  return absl::OkStatus();
}

absl::Status GetCall::VerifyTables() {
  if (verified_tables_) return absl::OkStatus();
  MutexLock lock(&mu_);
  for (int i = 0; i < assembly_.num_objects(); ++i) {
    const ObjectHeader& header = assembly_.header(i);
    const std::span<const std::byte> frames(assembly_.frame(i, 0).data(),
                                            header.frame_bytes * header.num_layers);
    if (const absl::Status status = CheckTableContent(header, numbering_(i), frames);
        !status.ok()) {
      Fail(status);
      return failure_;
    }
  }
  verified_tables_ = true;
  return absl::OkStatus();
}

int GetCall::num_objects() const { return static_cast<int>(keys_.size()); }

const ObjectHeader& GetCall::header(int object_index) const {
  MutexLock lock(&mu_);
  return assembly_.header(object_index);
}

std::span<const std::byte> GetCall::frame(int object_index, int layer) const {
  MutexLock lock(&mu_);
  return assembly_.frame(object_index, layer);
}

AlignedBuffer GetCall::TakeObject(int object_index) {
  MutexLock lock(&mu_);
  return assembly_.TakeObject(object_index);
}

uint64_t GetCall::received_bytes() const {
  MutexLock lock(&mu_);
  return assembly_.received_bytes();
}

void GetCall::Cancel() {
  MutexLock lock(&mu_);
  Fail(absl::CancelledError("get cancelled by its owner"));
}

}  // namespace pkv
