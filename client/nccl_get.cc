#include "client/nccl_get.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/nccl_dialer.h"
#include "client/shm_get.h"
#include "client/striped_get.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/transport/data_frame.h"
#include "proto/transport/nccl/frame_rules.h"

namespace pkv {
namespace {

// For other gets to have had their turn, where gRPC could be tried instead.
constexpr absl::Duration kTurnPatience = absl::Seconds(2);
// The same where the server's own pair comes next: of a prefix of 32k tokens a turn takes some ms.
constexpr absl::Duration kDirectPatience = absl::Milliseconds(200);

// How no pair came about, as a get says it: nothing of the objects is known yet, so that gRPC may
// be tried whatever NCCL, CUDA or the server said.
absl::Status AsUnavailable(const absl::Status& status) {
  if (status.ok() || absl::IsFailedPrecondition(status) || absl::IsDeadlineExceeded(status) ||
      absl::IsUnavailable(status)) {
    return status;
  }
  return absl::UnavailableError(absl::StrCat("nccl: ", status.ToString()));
}

}  // namespace

NcclGet::NcclGet(std::shared_ptr<ClientCore> core, std::vector<ObjectKey> keys, absl::Time deadline,
                 CallRecord record, std::shared_ptr<DirectPeer> direct)
    : core_(std::move(core)),
      keys_(std::move(keys)),
      deadline_(deadline),
      record_(std::move(record)),
      direct_(std::move(direct)) {
  if (keys_.empty() || keys_.size() > kMaxObjectsPerCall) {
    Fail(absl::InvalidArgumentError(
             absl::StrCat(keys_.size(), " keys in one get, not in 1..", kMaxObjectsPerCall)))
        .IgnoreError();
  }
}

NcclGet::~NcclGet() { ReleasePlaces().IgnoreError(); }

// A transfer is not cut short: its bytes are on their way, and the pair would go with it.
absl::Status NcclGet::ReleasePlaces() {
  Cancel();
  if (thread_.joinable()) thread_.join();
  MutexLock lock(&mu_);
  return absl::IsInternal(end_) ? end_ : absl::OkStatus();
}

absl::Status NcclGet::Fail(const absl::Status& status) {
  if (!failure_.ok()) return failure_;
  failure_ = status;
  core_->counters.CountEnd(status);
  record_.End(status.code());
  return failure_;
}

absl::Status NcclGet::Begin() {
  if (failure_.ok() && inner_ == nullptr && heads_.empty()) {
    const absl::Status tried = TryToFetch();
    if (!tried.ok()) PKV_RETURN_IF_ERROR(RecoverFrom(tried));
  }
  if (failure_.ok() && cancelled_) return Fail(absl::CancelledError("get cancelled by its owner"));
  return failure_;
}

absl::Status NcclGet::TryToFetch() {
  if (direct_ != nullptr) {
    const absl::Status tried = TryDirect();
    // Whatever code a prefill worker answers with, it is our owner who cancels.
    if (tried.ok() || IsOurCancel(tried)) return tried;
    LeaveDirect();
  }
  // Where gRPC can be used instead, a pair that is being made is not waited for.
  const bool waits = core_->options.transport == Transport::kNccl;
  return FetchOver(*core_->nccl, waits ? absl::InfiniteDuration() : absl::ZeroDuration(),
                   waits ? absl::InfiniteDuration() : kTurnPatience);
}

// Whatever keeps the frames from coming so, the client's server is still to be asked.
absl::Status NcclGet::TryDirect() {
  const absl::Status tried = FetchOver(direct_->dialer, absl::ZeroDuration(), kDirectPatience);
  // Not there any more, or not yet: no failure.
  if (tried.ok() || link_ == nullptr || absl::IsNotFound(tried) || IsOurCancel(tried)) {
    return tried;
  }
  // Others had their turn for as long as is worth waiting: it did nothing wrong.
  if (absl::IsDeadlineExceeded(tried) && !has_turn_) return tried;
  ++core_->counters.direct_fallbacks;
  Log(LogLevel::kWarning, "direct: asking the cache instead", {{"reason", tried.ToString()}});
  return tried;
}

absl::Status NcclGet::FetchOver(NcclDialer& dialer, absl::Duration link_patience,
                                absl::Duration turn_patience) {
  const absl::Time now = core_->clock->MonotonicNow();
  absl::StatusOr<std::shared_ptr<NcclLink>> link =
      dialer.Link(std::min(now + link_patience, deadline_));
  PKV_RETURN_IF_ERROR(AsUnavailable(link.status()));
  {
    MutexLock lock(&mu_);
    link_ = *std::move(link);
  }
  std::unique_ptr<NcclLink::Turn> turn;
  has_turn_ = false;
  PKV_ASSIGN_OR_RETURN(
      turn, link_->TakeTurn(std::min(core_->clock->MonotonicNow() + turn_patience, deadline_),
                            cancelled_));
  has_turn_ = true;
  asked_at_ = core_->clock->MonotonicNow();
  absl::StatusOr<v1::PairManifest> manifest = turn->Fetch(keys_, deadline_);
  answered_at_ = core_->clock->MonotonicNow();
  PKV_RETURN_IF_ERROR(AsUnavailable(manifest.status()));
  const absl::Status read = ReadManifest(*std::move(manifest));
  if (absl::IsDataLoss(read)) turn->GiveUp(read);
  PKV_RETURN_IF_ERROR(read);
  PKV_RETURN_IF_ERROR(KeepHeaders());
  StartTransfer(std::move(turn));
  return absl::OkStatus();
}

absl::Status NcclGet::ReadManifest(v1::PairManifest manifest) {
  if (manifest.code() != 0) {
    return absl::Status(static_cast<absl::StatusCode>(manifest.code()),
                        absl::StrCat("nccl: ", manifest.message()));
  }
  std::vector<ObjectHead> heads;
  uint64_t total_bytes = 0;
  for (int i = 0; i < num_objects(); ++i) {
    if (manifest.heads(i).empty()) {
      return absl::NotFoundError(absl::StrCat(ObjectName(keys_[i], i), " is not stored"));
    }
    PKV_ASSIGN_OR_RETURN(ObjectHead head,
                         ParseObjectHead(keys_[i], i, std::as_bytes(std::span(manifest.heads(i)))));
    total_bytes += head.header.object_bytes;  // at most 4,096 times kMaxObjectBytes
    heads.push_back(std::move(head));
    if (heads[i].header.num_layers != heads[0].header.num_layers) {
      return absl::FailedPreconditionError(
          absl::StrCat("nccl: objects of ", heads[0].header.num_layers, " and ",
                       heads[i].header.num_layers, " layers in one get"));
    }
  }
  if (total_bytes > kMaxGetBytes) {
    return absl::DataLossError(
        absl::StrCat("objects of ", total_bytes, " bytes, limit ", kMaxGetBytes));
  }
  heads_ = std::move(heads);
  for (std::string& bytes : *manifest.mutable_heads()) head_bytes_.push_back(std::move(bytes));
  return absl::OkStatus();
}

absl::Status NcclGet::KeepHeaders() {
  const bool is_first = headers_.empty();
  for (int i = 0; i < num_objects(); ++i) {
    const ObjectHeader& header = inner_ != nullptr ? inner_->header(i) : heads_[i].header;
    if (is_first) {
      headers_.push_back(header);
      most_layers_ = std::max<int>(most_layers_, header.num_layers);
    } else if (header != headers_[i]) {
      return Fail(absl::AbortedError(absl::StrCat(
          ObjectName(keys_[i], i), ": replaced by other bytes while it was being fetched")));
    }
  }
  return absl::OkStatus();
}

absl::Status NcclGet::RecoverFrom(const absl::Status& status) {
  // What was damaged on the way from another server, or there, is whole on ours.
  const bool is_elsewhere = direct_ != nullptr && absl::IsDataLoss(status);
  if (is_elsewhere) ++core_->counters.integrity_failures;
  // The same answer as gRPC would give; damage is damage; and after Internal places may still be
  // written to.
  if (!failure_.ok() || absl::IsNotFound(status) || (absl::IsDataLoss(status) && !is_elsewhere) ||
      IsOurCancel(status) || absl::IsInternal(status) ||
      core_->options.transport == Transport::kNccl) {
    return Fail(status);
  }
  // A server without nccl, or a pair that is not there yet, is no failure of it.
  if (link_ != nullptr && !absl::IsFailedPrecondition(status)) {
    const bool is_direct = direct_ != nullptr;
    ++(is_direct ? core_->counters.direct_fallbacks : core_->counters.nccl_fallbacks);
    Log(LogLevel::kWarning, is_direct ? "direct: going on over gRPC" : "nccl: going on over gRPC",
        {{"reason", status.ToString()}});
  }
  // The transfer's thread uses the link. It has ended, or drops what still comes.
  if (thread_.joinable()) thread_.join();
  if (direct_ != nullptr) LeaveDirect();
  GoOver();
  return absl::OkStatus();
}

// The link first, which uses its connection; neither under the lock, since either may be the last.
void NcclGet::LeaveDirect() {
  std::shared_ptr<NcclLink> link;
  {
    MutexLock lock(&mu_);
    link = std::move(link_);
  }
  link.reset();
  direct_.reset();
}

void NcclGet::GoOver() {
  std::unique_ptr<GetStream> inner;
  int first_layer;
  {
    MutexLock lock(&mu_);
    first_layer = num_layers_here_;
  }
  if (first_layer == 0 && core_->shm->IsWorthATry()) {
    inner = std::make_unique<ShmGet>(core_, keys_, deadline_, std::move(record_));
  } else {
    inner = StartGrpcGet(core_, keys_, deadline_, std::move(record_), first_layer,
                         std::move(head_bytes_));
  }
  MutexLock lock(&mu_);
  inner_ = std::move(inner);
  if (cancelled_) inner_->Cancel();
}

absl::Status NcclGet::WaitForManifest() {
  PKV_RETURN_IF_ERROR(Begin());
  if (inner_ == nullptr || has_inner_headers_) return absl::OkStatus();
  const absl::Status status = inner_->WaitForManifest();
  // Of an object that was replaced, layers that came before are of no use either.
  if (absl::IsAborted(status)) failure_ = status;  // counted by inner_
  PKV_RETURN_IF_ERROR(status);
  PKV_RETURN_IF_ERROR(KeepHeaders());
  has_inner_headers_ = true;
  return absl::OkStatus();
}

void NcclGet::PlaceFrames(std::span<std::byte* const> places) {
  if (!failure_.ok() || inner_ != nullptr || std::exchange(has_placed_, true)) return;
  const absl::Status placed = Place(places);
  {
    MutexLock lock(&mu_);
    (placed.ok() ? is_placed_ : is_unwanted_) = true;
    changed_.SignalAll();
  }
  // What fails shows in WaitForLayer.
  if (!placed.ok()) RecoverFrom(placed).IgnoreError();
}

absl::Status NcclGet::Place(std::span<std::byte* const> places) {
  placed_at_ = core_->clock->MonotonicNow();
  const size_t num_frames = heads_.size() * static_cast<size_t>(num_layers());
  PKV_CHECK(places.empty() || places.size() == num_frames, places.size(), " of ", num_frames);
  places_.assign(num_frames, nullptr);
  std::copy(places.begin(), places.end(), places_.begin());
  uint64_t scratch_bytes = 0;
  for (size_t i = 0; i < num_frames; ++i) {
    if (places_[i] == nullptr) scratch_bytes += heads_[i / num_layers()].header.frame_bytes;
  }
  if (scratch_bytes == 0) return absl::OkStatus();
  PKV_ASSIGN_OR_RETURN(scratch_, core_->scratch->Take(scratch_bytes));
  std::byte* next = scratch_->data();
  for (size_t i = 0; i < num_frames; ++i) {
    if (places_[i] != nullptr) continue;
    places_[i] = next;
    next += heads_[i / num_layers()].header.frame_bytes;
  }
  return absl::OkStatus();
}

// The first groups come while the owner finds places.
void NcclGet::StartTransfer(std::unique_ptr<NcclLink::Turn> turn) {
  read_at_ = core_->clock->MonotonicNow();
  thread_ = std::thread([this](std::unique_ptr<NcclLink::Turn> of) { RunTransfer(std::move(of)); },
                        std::move(turn));
}

bool NcclGet::is_placed() const {
  MutexLock lock(&mu_);
  return is_placed_;
}

bool NcclGet::is_settled() const {
  MutexLock lock(&mu_);
  return is_placed_ || is_unwanted_ || cancelled_;
}

// What a layer of the transfer is compared with, and where it lies.
struct NcclGet::LayerLists {
  explicit LayerLists(const std::vector<ObjectHead>& heads) {
    rules.reserve(heads.size());
    for (const ObjectHead& head : heads) {
      rules.push_back(FrameRules::Of(head.header));
      rules_of.push_back(&rules.back());
      layer_bytes += head.header.frame_bytes;
    }
  }

  std::vector<FrameRules> rules;
  std::vector<const FrameRules*> rules_of;
  uint64_t layer_bytes = 0;
  // Of the layer that is moved now.
  std::vector<DeviceSpan> spans;
  std::vector<uint32_t> checksums;
};

absl::StatusOr<LayerSpans> NcclGet::ListLayer(int layer, LayerLists& lists) {
  if (layer == 0 && !is_placed()) {
    return absl::CancelledError("nccl: nobody has a place for the frames any more");
  }
  lists.spans.clear();
  lists.checksums.clear();
  for (int i = 0; i < num_objects(); ++i) {
    lists.spans.push_back({place(i, layer), heads_[i].header.frame_bytes});
    lists.checksums.push_back(heads_[i].frame_crcs[layer]);
  }
  return LayerSpans{.spans = lists.spans, .checksums = lists.checksums, .rules = lists.rules_of};
}

void NcclGet::RunTransfer(std::unique_ptr<NcclLink::Turn> turn) {
  LayerLists lists(heads_);
  const LayerSource source{
      .num_layers = static_cast<size_t>(num_layers()),
      .total_bytes = turn->total_bytes(),
      .layer = [&](size_t layer) { return ListLayer(static_cast<int>(layer), lists); },
      .is_known = [this] { return is_settled(); }};
  const TransferLimits limits{.timeout = deadline_ - core_->clock->MonotonicNow()};
  absl::Time first, last;
  CounterSet& counters = core_->counters;
  std::atomic<uint64_t>& bytes =
      direct_ != nullptr ? counters.direct_get_bytes : counters.nccl_get_bytes;
  bool is_sound = true;
  absl::Status status =
      turn->Receive(source, limits, [&](size_t layer, const absl::Status& layer_status) {
        is_sound = is_sound && layer_status.ok();
        if (!is_sound) return;
        bytes += lists.layer_bytes;
        last = core_->clock->MonotonicNow();
        if (layer == 0) first = last;
        MutexLock lock(&mu_);
        num_layers_here_ = static_cast<int>(layer) + 1;
        changed_.SignalAll();
      });
  if (absl::IsDataLoss(status)) {
    const auto bad = turn->ReportDamage();
    const int object = bad.has_value() ? static_cast<int>(bad->span_index) : 0;
    status = absl::DataLossError(
        absl::StrCat(ObjectName(keys_[object], object), ": ", status.message()));
  }
  turn.reset();
  if (status.ok()) LogTransfer(first, last, source.total_bytes);
  if (status.ok()) ++(direct_ != nullptr ? counters.direct_gets : counters.nccl_gets);
  MutexLock lock(&mu_);
  ended_ = true;
  end_ = status;
  changed_.SignalAll();
}

void NcclGet::LogTransfer(absl::Time first, absl::Time last, uint64_t bytes) const {
  const auto ms = [](absl::Duration part) { return absl::ToDoubleMilliseconds(part); };
  Log(LogLevel::kDebug, "nccl: received",
      {{"from", direct_ != nullptr ? "prefill" : "cache"},
       {"objects", keys_.size()},
       {"bytes", bytes},
       {"manifest_ms", ms(answered_at_ - asked_at_)},
       {"read_ms", ms(read_at_ - answered_at_)},
       {"place_ms", ms(placed_at_ - read_at_)},
       {"first_layer_ms", ms(first - answered_at_)},
       {"other_layers_ms", ms(last - first)}});
}

bool NcclGet::AwaitLayer(int layer, absl::Status& status) {
  {
    MutexLock lock(&mu_);
    while (num_layers_here_ <= layer && !ended_ && !cancelled_) changed_.Wait(&mu_);
    if (num_layers_here_ > layer) return true;
    status = cancelled_ ? absl::CancelledError("get cancelled by its owner") : end_;
    if (!ended_) return false;
  }
  // Places are written to no more.
  thread_.join();
  return false;
}

absl::Status NcclGet::WaitForLayer(int layer) {
  PKV_RETURN_IF_ERROR(WaitForManifest());
  if (layer < 0 || layer >= most_layers_) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", layer, " not in [0, ", most_layers_, ")"));
  }
  if (inner_ == nullptr) {
    PlaceFrames({});  // nobody named any
    PKV_RETURN_IF_ERROR(failure_);
  }
  if (inner_ == nullptr) {
    absl::Status status;
    if (AwaitLayer(layer, status)) {
      // Layers come in order.
      if (layer + 1 == num_layers()) record_.End(absl::StatusCode::kOk);
      return absl::OkStatus();
    }
    PKV_RETURN_IF_ERROR(RecoverFrom(status));
  }
  if (is_on_device(layer)) return absl::OkStatus();
  PKV_RETURN_IF_ERROR(WaitForManifest());
  return inner_->WaitForLayer(layer);
}

absl::Status NcclGet::WaitForAll() {
  PKV_RETURN_IF_ERROR(WaitForManifest());
  for (int layer = 0; layer < most_layers_; ++layer) {
    PKV_RETURN_IF_ERROR(WaitForLayer(layer));
  }
  return inner_ != nullptr && !is_on_device(0) ? inner_->WaitForAll() : absl::OkStatus();
}

const ObjectHeader& NcclGet::header(int object_index) const {
  PKV_CHECK(object_index >= 0 && object_index < static_cast<int>(headers_.size()), object_index,
            " of ", headers_.size());
  return headers_[object_index];
}

bool NcclGet::is_on_device(int layer) const {
  MutexLock lock(&mu_);
  return layer < num_layers_here_;
}

std::span<const std::byte> NcclGet::frame(int object_index, int layer) const {
  if (!is_on_device(layer)) return inner_->frame(object_index, layer);
  return {place(object_index, layer), header(object_index).frame_bytes};
}

AlignedBuffer NcclGet::TakeObject(int object_index) {
  PKV_CHECK(inner_ != nullptr && !is_on_device(0), "frames are in device memory");
  return inner_->TakeObject(object_index);
}

absl::Status NcclGet::CheckHeld() {
  PKV_RETURN_IF_ERROR(failure_);
  return inner_ != nullptr ? inner_->CheckHeld() : absl::OkStatus();
}

uint64_t NcclGet::received_bytes() const {
  uint64_t bytes = inner_ != nullptr ? inner_->received_bytes() : 0;
  MutexLock lock(&mu_);
  for (const ObjectHead& head : heads_) {
    bytes += head.header.frame_bytes * static_cast<uint64_t>(num_layers_here_);
  }
  return bytes;
}

void NcclGet::Cancel() {
  MutexLock lock(&mu_);
  cancelled_ = true;
  changed_.SignalAll();
  if (link_ != nullptr) link_->Wake();
  if (inner_ != nullptr) inner_->Cancel();
}

}  // namespace pkv
