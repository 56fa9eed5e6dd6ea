#include "proto/transport/nccl/nccl_pair.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// Groups in flight: one on its way, one posted behind it, one being gathered or scattered.
constexpr size_t kSlots = 3;

// What both ends send when they open: that they speak alike.
struct Greeting {
  uint32_t magic = 0x706b7630;
  uint32_t rank = 0;
  uint64_t group_bytes = 0;
};
constexpr uint64_t kGreetingBytes = sizeof(Greeting);
static_assert(kGreetingBytes == 16 && kGreetingBytes % kSpanAlignmentBytes == 0);

// Runs `work` on a thread of its own and waits up to `timeout` for it, from when it has begun: a
// busy machine may be late to start a thread, and what comes next counts on it. The thread may end
// after the pair: when NCCL waits for the peer's process, or freeing memory for another pair's
// kernels.
void RunBounded(absl::Duration timeout, std::function<void()> work) {
  enum class Stage { kStarting, kRunning, kDone };
  struct Shared {
    void Reach(Stage reached) {
      MutexLock lock(&mu);
      stage = reached;
      changed.SignalAll();
    }
    Mutex mu;
    CondVar changed;
    Stage stage ABSL_GUARDED_BY(mu) = Stage::kStarting;
  };
  auto shared = std::make_shared<Shared>();  // by both threads, whichever ends first
  std::thread([shared, work = std::move(work)] {
    shared->Reach(Stage::kRunning);
    work();
    shared->Reach(Stage::kDone);
  }).detach();
  MutexLock lock(&shared->mu);
  while (shared->stage == Stage::kStarting) shared->changed.Wait(&shared->mu);
  // The machine's clock even in tests: this waits for a thread, which no other clock moves.
  Clock* const clock = Clock::Real();
  const absl::Time end = clock->MonotonicNow() + timeout;
  while (shared->stage != Stage::kDone) {
    const absl::Duration left = end - clock->MonotonicNow();
    if (left <= absl::ZeroDuration()) break;
    shared->changed.WaitWithTimeout(&shared->mu, left);
  }
}

}  // namespace

struct NcclPair::Bound {
  absl::Time end;
  absl::Duration allowed;
};

// Of one call that moves groups.
struct NcclPair::Progress {
  enum class Kind { kSend, kReceive, kChecksum } kind;
  TransferPlan plan;
  const TransferLimits& limits;
  LayerDone layer_done = nullptr;
  std::array<TransferGroup, kSlots> groups = {};  // as slots
  absl::Time end = {};                            // of the call
  absl::Time last_group = {};                     // when the last one was through
  size_t num_issued = 0, num_finished = 0;
  absl::Status dropped = {};  // not OK: nobody says where the rest is to lie
  uint32_t span_digest = 0;   // of the pieces so far of a span that goes on in the next group
  uint32_t layers_told = 0;
  absl::Status layer_status = {};     // of layers_told
  absl::Status first_data_loss = {};  // of all layers
  std::vector<uint32_t> digests = {};

  Bound bound() const {
    const absl::Time stalled = last_group + limits.stall_timeout;
    if (stalled < end) return {stalled, limits.stall_timeout};
    return {end, limits.timeout};
  }
};

NcclPair::NcclPair(std::shared_ptr<PairCalls> calls, const NcclPairOptions& options, Clock* clock)
    : calls_(std::move(calls)), options_(options), clock_(clock) {}

NcclPair::~NcclPair() {
  if (state_ == State::kOpen) static_cast<void>(Break(absl::OkStatus()));
}

void NcclPair::PeerGone(absl::string_view reason) {
  MutexLock lock(&mu_);
  if (is_peer_gone_) return;
  peer_gone_reason_ = std::string(reason);
  is_peer_gone_ = true;
  peer_gone_.SignalAll();
}

absl::Status NcclPair::PeerGoneStatus() {
  MutexLock lock(&mu_);
  return absl::UnavailableError(absl::StrCat("the peer is gone: ", peer_gone_reason_));
}

absl::Status NcclPair::RequireState(State state, absl::string_view call) const {
  if (state_ == state) return absl::OkStatus();
  static constexpr const char* kNames[] = {"idle", "open", "broken", "closed"};
  return absl::FailedPreconditionError(
      absl::StrCat(call, " of a pair that is ", kNames[static_cast<int>(state_)]));
}

// Spins while a group is in flight (tens of microseconds), then looks ten thousand times a second.
void NcclPair::Pause(int num_polls) {
  constexpr int kSpins = 5000;
  if (num_polls < kSpins) {
    std::this_thread::yield();
    return;
  }
  MutexLock lock(&mu_);
  if (!is_peer_gone_) peer_gone_.WaitWithTimeout(&mu_, absl::Microseconds(100));
}

absl::Status NcclPair::Await(const Bound& bound, absl::string_view what,
                             const std::function<absl::StatusOr<bool>()>& done) {
  for (int num_polls = 0;; ++num_polls) {
    if (is_peer_gone_) return PeerGoneStatus();
    PKV_ASSIGN_OR_RETURN(const bool is_done, done());
    if (is_done) return absl::OkStatus();
    // Errors of the network, or of NCCL's own threads, show here only.
    PKV_RETURN_IF_ERROR(calls_->IsReady(comm_).status());
    if (clock_->MonotonicNow() >= bound.end) {
      return absl::DeadlineExceededError(
          absl::StrCat(what, " took over ", absl::FormatDuration(bound.allowed)));
    }
    Pause(num_polls);
  }
}

absl::Status NcclPair::AwaitReady(const Bound& bound, absl::string_view what) {
  return Await(bound, what, [this] { return calls_->IsReady(comm_); });
}

absl::Status NcclPair::Open(const NcclUniqueId& id, int rank) {
  PKV_RETURN_IF_ERROR(RequireState(State::kIdle, "Open"));
  const absl::Status status = Connect(id, rank);
  if (!status.ok()) return Break(status);
  state_ = State::kOpen;
  return absl::OkStatus();
}

absl::Status NcclPair::Connect(const NcclUniqueId& id, int rank) {
  PKV_CHECK(rank == 0 || rank == 1, rank);
  const Bound bound = {clock_->MonotonicNow() + options_.open_timeout, options_.open_timeout};
  PKV_ASSIGN_OR_RETURN(comm_stream_, calls_->MakeStream(0));
  PKV_ASSIGN_OR_RETURN(copy_stream_, calls_->MakeStream(1));
  slots_.resize(kSlots);
  for (PairSlot& slot : slots_) PKV_RETURN_IF_ERROR(slot.Allocate(*calls_, options_.group_bytes));
  if (is_peer_gone_) return PeerGoneStatus();
  PKV_ASSIGN_OR_RETURN(comm_, calls_->BeginInit(id, rank));
  PKV_RETURN_IF_ERROR(AwaitReady(bound, "joining the peer"));
  return Exchange(rank, bound);
}

absl::Status NcclPair::Exchange(int rank, const Bound& bound) {
  const Greeting sent = {.rank = static_cast<uint32_t>(rank), .group_bytes = options_.group_bytes};
  std::byte* const host = slots_[0].host();
  std::byte* const out = slots_[0].staging();
  std::byte* const in = slots_[1].staging();
  std::memcpy(host, &sent, sizeof(sent));
  PKV_RETURN_IF_ERROR(calls_->CopyAsync(out, host, kGreetingBytes, comm_stream_));
  const std::array<PairOp, 2> ops = {PairOp{true, out, kGreetingBytes},
                                     PairOp{false, in, kGreetingBytes}};
  PKV_RETURN_IF_ERROR(calls_->Begin(comm_, ops, comm_stream_));
  PKV_RETURN_IF_ERROR(AwaitReady(bound, "connecting to the peer"));
  PKV_RETURN_IF_ERROR(calls_->CopyAsync(host, in, kGreetingBytes, comm_stream_));
  PKV_RETURN_IF_ERROR(
      Await(bound, "the peer's greeting", [this] { return calls_->StreamIsIdle(comm_stream_); }));
  Greeting got;
  std::memcpy(&got, host, sizeof(got));
  if (got.magic != sent.magic || got.rank != 1 - sent.rank || got.group_bytes != sent.group_bytes) {
    return absl::FailedPreconditionError(
        absl::StrCat("the peer is rank ", got.rank, " with groups of ", got.group_bytes,
                     " bytes, this is rank ", sent.rank, " with ", sent.group_bytes));
  }
  return absl::OkStatus();
}

absl::Status NcclPair::Send(std::span<const LayerSpans> layers, const TransferLimits& limits) {
  PKV_RETURN_IF_ERROR(RequireState(State::kOpen, "Send"));
  PKV_ASSIGN_OR_RETURN(const LayerSource source, LayerSource::Of(layers));
  Progress progress = {.kind = Progress::Kind::kSend,
                       .plan = TransferPlan(source, options_.group_bytes),
                       .limits = limits};
  return Run(progress);
}

absl::Status NcclPair::Receive(std::span<const LayerSpans> layers, const TransferLimits& limits,
                               const LayerDone& layer_done) {
  PKV_RETURN_IF_ERROR(RequireState(State::kOpen, "Receive"));
  for (const LayerSpans& layer : layers) {
    if (layer.checksums.empty()) {
      return absl::InvalidArgumentError("a receive without checksums to compare with");
    }
  }
  PKV_ASSIGN_OR_RETURN(const LayerSource source, LayerSource::Of(layers));
  return Receive(source, limits, layer_done);
}

absl::Status NcclPair::BeginReceive(uint64_t total_bytes) {
  PKV_RETURN_IF_ERROR(RequireState(State::kOpen, "BeginReceive"));
  PKV_CHECK(begun_bytes_ == 0, begun_bytes_);
  begun_bytes_ = total_bytes;
  const absl::Status posted = PostReceive(0, std::min(total_bytes, options_.group_bytes));
  return posted.ok() ? posted : Break(posted);
}

absl::Status NcclPair::Receive(const LayerSource& source, const TransferLimits& limits,
                               const LayerDone& layer_done) {
  PKV_RETURN_IF_ERROR(RequireState(State::kOpen, "Receive"));
  if (begun_bytes_ != 0 && begun_bytes_ != source.total_bytes) {
    return Break(absl::InvalidArgumentError(absl::StrCat(
        "a receive of ", source.total_bytes, " bytes, where ", begun_bytes_, " have begun")));
  }
  bad_span_.reset();
  Progress progress = {.kind = Progress::Kind::kReceive,
                       .plan = TransferPlan(source, options_.group_bytes),
                       .limits = limits,
                       .layer_done = layer_done};
  PKV_RETURN_IF_ERROR(Run(progress));
  return progress.dropped.ok() ? progress.first_data_loss : progress.dropped;
}

absl::StatusOr<std::vector<uint32_t>> NcclPair::Checksum(const LayerSpans& layer,
                                                         const TransferLimits& limits) {
  PKV_RETURN_IF_ERROR(RequireState(State::kOpen, "Checksum"));
  PKV_ASSIGN_OR_RETURN(const LayerSource source, LayerSource::Of(std::span(&layer, 1)));
  Progress progress = {.kind = Progress::Kind::kChecksum,
                       .plan = TransferPlan(source, options_.group_bytes),
                       .limits = limits};
  PKV_RETURN_IF_ERROR(Run(progress));
  return std::move(progress.digests);
}

absl::Status NcclPair::Run(Progress& progress) {
  progress.last_group = clock_->MonotonicNow();
  progress.end = progress.last_group + progress.limits.timeout;
  const auto run = [&]() -> absl::Status {
    switch (progress.kind) {
      case Progress::Kind::kSend:
        PKV_RETURN_IF_ERROR(RunSend(progress));
        break;
      case Progress::Kind::kReceive:
        PKV_RETURN_IF_ERROR(RunReceive(progress));
        break;
      case Progress::Kind::kChecksum:
        PKV_RETURN_IF_ERROR(RunChecksum(progress));
        break;
    }
    while (progress.num_finished < progress.num_issued) {
      PKV_RETURN_IF_ERROR(FinishGroup(progress));
    }
    return absl::OkStatus();
  };
  const absl::Status status = run();
  return status.ok() ? status : Break(status);
}

// NCCL posts an operation on a thread that it starts for it, which takes about as long as 32 MiB
// take on the wire. What this thread has to do for other groups is done meanwhile.
absl::Status NcclPair::RunSend(Progress& progress) {
  const size_t num_groups = progress.plan.num_groups();
  PKV_RETURN_IF_ERROR(PrepareSend(progress, 0));
  for (size_t g = 0; g < num_groups; ++g) {
    PKV_RETURN_IF_ERROR(BeginSend(progress, g));
    if (g + 1 < num_groups) {
      PKV_RETURN_IF_ERROR(FreeSlotOf(progress, g + 1));
      PKV_RETURN_IF_ERROR(PrepareSend(progress, g + 1));
    }
    PKV_RETURN_IF_ERROR(AwaitReady(progress.bound(), "posting a send"));
    PKV_RETURN_IF_ERROR(calls_->RecordEvent(slots_[g % kSlots].done(), comm_stream_));
    ++progress.num_issued;
    PKV_RETURN_IF_ERROR(FinishWhatPassed(progress));
  }
  return absl::OkStatus();
}

// As many groups as there are slots come to staging before it is known where they are to lie.
absl::Status NcclPair::RunReceive(Progress& progress) {
  const size_t num_groups = progress.plan.num_groups();
  size_t num_posted = 0, num_filled = 0;
  bool has_begun = std::exchange(begun_bytes_, 0) != 0;
  while (progress.num_issued < num_groups) {
    const bool posts = num_posted < num_groups && num_posted < progress.num_finished + kSlots;
    if (posts && !std::exchange(has_begun, false)) {
      PKV_RETURN_IF_ERROR(PostReceive(num_posted, progress.plan.BytesOf(num_posted)));
    }
    const bool may_fill = num_filled == progress.num_issued && num_filled < num_posted + posts;
    if (may_fill && !posts) PKV_RETURN_IF_ERROR(AwaitPlaces(progress));
    if (may_fill && (!posts || progress.plan.IsNextKnown())) {
      PKV_RETURN_IF_ERROR(FillReceive(progress, num_filled++));
    }
    if (posts) {
      PKV_RETURN_IF_ERROR(AwaitReady(progress.bound(), "posting a receive"));
      PKV_RETURN_IF_ERROR(
          calls_->RecordEvent(slots_[num_posted % kSlots].received(), comm_stream_));
      ++num_posted;
    }
    const bool launches = progress.num_issued < num_filled && progress.num_issued < num_posted;
    if (launches) PKV_RETURN_IF_ERROR(LaunchReceive(progress, progress.num_issued));
    PKV_RETURN_IF_ERROR(FinishWhatPassed(progress));
    // All slots are in use, or were a moment ago.
    if (!posts && !launches) PKV_RETURN_IF_ERROR(FreeSlotOf(progress, num_posted));
  }
  return absl::OkStatus();
}

// What was posted waits for the peer on the device meanwhile: as long as a peer may.
absl::Status NcclPair::AwaitPlaces(Progress& progress) {
  if (progress.plan.IsNextKnown()) return absl::OkStatus();
  PKV_RETURN_IF_ERROR(Await(progress.bound(), "to be told where the bytes lie",
                            [&] { return progress.plan.IsNextKnown(); }));
  progress.last_group = clock_->MonotonicNow();
  return absl::OkStatus();
}

absl::Status NcclPair::RunChecksum(Progress& progress) {
  for (size_t g = 0; g < progress.plan.num_groups(); ++g) {
    TransferGroup& group = progress.groups[g % kSlots];
    PairSlot& slot = slots_[g % kSlots];
    PKV_RETURN_IF_ERROR(FreeSlotOf(progress, g));
    PKV_RETURN_IF_ERROR(progress.plan.Next(group));
    PKV_RETURN_IF_ERROR(slot.Fill(*calls_, group, SlotWork::kDigest, cutter_));
    PKV_RETURN_IF_ERROR(WaitForLayers(group, copy_stream_));
    PKV_RETURN_IF_ERROR(slot.Launch(*calls_, copy_stream_));
    PKV_RETURN_IF_ERROR(calls_->RecordEvent(slot.done(), copy_stream_));
    ++progress.num_issued;
  }
  return absl::OkStatus();
}

absl::Status NcclPair::FreeSlotOf(Progress& progress, size_t group_index) {
  while (progress.num_finished + kSlots <= group_index) {
    PKV_RETURN_IF_ERROR(FinishGroup(progress));
  }
  return absl::OkStatus();
}

absl::Status NcclPair::WaitForLayers(const TransferGroup& group, void* stream) {
  for (void* ready : group.ready) PKV_RETURN_IF_ERROR(calls_->StreamWaitEvent(stream, ready));
  return absl::OkStatus();
}

absl::Status NcclPair::PrepareSend(Progress& progress, size_t group_index) {
  TransferGroup& group = progress.groups[group_index % kSlots];
  PKV_RETURN_IF_ERROR(progress.plan.Next(group));
  if (group.contiguous != nullptr) return absl::OkStatus();
  PairSlot& slot = slots_[group_index % kSlots];
  PKV_RETURN_IF_ERROR(slot.Fill(*calls_, group, SlotWork::kGather, cutter_));
  PKV_RETURN_IF_ERROR(WaitForLayers(group, copy_stream_));
  PKV_RETURN_IF_ERROR(slot.Launch(*calls_, copy_stream_));
  return calls_->RecordEvent(slot.copied(), copy_stream_);
}

absl::Status NcclPair::BeginSend(Progress& progress, size_t group_index) {
  const TransferGroup& group = progress.groups[group_index % kSlots];
  const PairSlot& slot = slots_[group_index % kSlots];
  const bool gathers = group.contiguous == nullptr;
  if (gathers) {
    PKV_RETURN_IF_ERROR(calls_->StreamWaitEvent(comm_stream_, slot.copied()));
  } else {
    PKV_RETURN_IF_ERROR(WaitForLayers(group, comm_stream_));
  }
  const PairOp op = {true, gathers ? slot.staging() : group.contiguous, group.bytes};
  return calls_->Begin(comm_, std::span(&op, 1), comm_stream_);
}

// Always to staging: a group whose spans lie in one piece is rare, and the digests read it anyway.
absl::Status NcclPair::PostReceive(size_t group_index, uint64_t bytes) {
  const PairOp op = {false, slots_[group_index % kSlots].staging(), bytes};
  return calls_->Begin(comm_, std::span(&op, 1), comm_stream_);
}

absl::Status NcclPair::FillReceive(Progress& progress, size_t group_index) {
  if (!progress.dropped.ok()) return absl::OkStatus();
  TransferGroup& group = progress.groups[group_index % kSlots];
  progress.dropped = progress.plan.Next(group);
  if (!progress.dropped.ok()) return absl::OkStatus();
  return slots_[group_index % kSlots].Fill(*calls_, group, SlotWork::kScatter, cutter_);
}

absl::Status NcclPair::LaunchReceive(Progress& progress, size_t group_index) {
  PairSlot& slot = slots_[group_index % kSlots];
  PKV_RETURN_IF_ERROR(calls_->StreamWaitEvent(copy_stream_, slot.received()));
  if (progress.dropped.ok()) {
    PKV_RETURN_IF_ERROR(WaitForLayers(progress.groups[group_index % kSlots], copy_stream_));
    PKV_RETURN_IF_ERROR(slot.Launch(*calls_, copy_stream_));
  }
  PKV_RETURN_IF_ERROR(calls_->RecordEvent(slot.done(), copy_stream_));
  ++progress.num_issued;
  return absl::OkStatus();
}

absl::Status NcclPair::FinishWhatPassed(Progress& progress) {
  while (progress.num_finished < progress.num_issued) {
    const PairSlot& slot = slots_[progress.num_finished % kSlots];
    PKV_ASSIGN_OR_RETURN(const bool has_passed, calls_->EventHasPassed(slot.done()));
    if (!has_passed) return absl::OkStatus();
    PKV_RETURN_IF_ERROR(FinishGroup(progress));
  }
  return absl::OkStatus();
}

absl::Status NcclPair::FinishGroup(Progress& progress) {
  PKV_CHECK(progress.num_finished < progress.num_issued, progress.num_finished);
  const PairSlot& slot = slots_[progress.num_finished % kSlots];
  PKV_RETURN_IF_ERROR(
      Await(progress.bound(), "a group", [&] { return calls_->EventHasPassed(slot.done()); }));
  const TransferGroup& group = progress.groups[progress.num_finished % kSlots];
  progress.last_group = clock_->MonotonicNow();
  ++progress.num_finished;
  if (progress.kind != Progress::Kind::kSend && progress.dropped.ok()) {
    AddDigests(progress, group, slot);
  }
  return absl::OkStatus();
}

void NcclPair::AddDigests(Progress& progress, const TransferGroup& group, const PairSlot& slot) {
  const std::span<const uint32_t> digests = slot.digests(), flags = slot.flags();
  for (size_t i = 0; i < digests.size(); ++i) {
    const TransferGroup::Piece& piece = group.pieces[i];
    progress.span_digest ^= digests[i];
    if (!piece.ends_span()) continue;
    const uint32_t digest = std::exchange(progress.span_digest, 0);
    if (progress.kind == Progress::Kind::kChecksum) {
      progress.digests.push_back(digest);
    } else {
      Compare(progress, piece, digest, flags[i]);
    }
  }
  TellUntil(progress, group.layers_done);
}

void NcclPair::TellUntil(Progress& progress, uint32_t end_layer) {
  for (; progress.layers_told < end_layer; ++progress.layers_told) {
    if (progress.layer_done) progress.layer_done(progress.layers_told, progress.layer_status);
    progress.layer_status = absl::OkStatus();
  }
}

void NcclPair::Compare(Progress& progress, const TransferGroup::Piece& last, uint32_t digest,
                       uint32_t flag) {
  TellUntil(progress, last.layer);
  const bool is_sound = last.checksum == digest;
  if (is_sound && flag == 0) return;
  const std::string wrong = is_sound
                                ? "a number in it is out of its range"
                                : absl::StrCat("checksum ", digest, ", expected ", last.checksum);
  const absl::Status status = absl::DataLossError(absl::StrCat(
      "layer ", last.layer, " span ", last.index, " of ", last.span.bytes, " bytes: ", wrong));
  if (progress.layer_status.ok()) progress.layer_status = status;
  if (!progress.first_data_loss.ok()) return;
  progress.first_data_loss = status;
  bad_span_ = {last.layer, last.index};
}

absl::Status NcclPair::Close() {
  PKV_RETURN_IF_ERROR(RequireState(State::kOpen, "Close"));
  const Bound bound = {clock_->MonotonicNow() + options_.close_timeout, options_.close_timeout};
  absl::Status status = calls_->BeginFinalize(comm_);
  if (status.ok()) status = AwaitReady(bound, "closing");
  if (!status.ok()) return Break(status);
  state_ = State::kClosed;
  RunBounded(options_.abort_timeout,
             [calls = calls_, comm = std::exchange(comm_, nullptr)] { calls->Destroy(comm); });
  Release();
  return absl::OkStatus();
}

absl::Status NcclPair::Break(absl::Status status) {
  state_ = State::kBroken;
  // Its first act is to tell the kernels to end; then it may wait for the peer, which we do not.
  if (comm_ != nullptr) {
    RunBounded(options_.abort_timeout,
               [calls = calls_, comm = std::exchange(comm_, nullptr)] { calls->Abort(comm); });
  }
  const absl::Status idle = AwaitIdleStreams();
  if (!idle.ok()) {
    return absl::InternalError(
        absl::StrCat(idle.message(), " after an abort because of: ", status.ToString()));
  }
  Release();
  return status;
}

absl::Status NcclPair::AwaitIdleStreams() {
  const absl::Time end = clock_->MonotonicNow() + options_.abort_timeout;
  for (void* stream : {comm_stream_, copy_stream_}) {
    for (int num_polls = 0; stream != nullptr; ++num_polls) {
      PKV_ASSIGN_OR_RETURN(const bool is_idle, calls_->StreamIsIdle(stream));
      if (is_idle) break;
      if (clock_->MonotonicNow() >= end) return absl::InternalError("the GPU goes on working");
      Pause(num_polls);
    }
  }
  return absl::OkStatus();
}

void NcclPair::Release() {
  RunBounded(options_.abort_timeout,
             [calls = calls_, slots = std::exchange(slots_, {}),
              streams = std::array{std::exchange(comm_stream_, nullptr),
                                   std::exchange(copy_stream_, nullptr)}]() mutable {
               for (PairSlot& slot : slots) slot.Free(*calls);
               for (void* stream : streams) {
                 if (stream != nullptr) calls->DestroyStream(stream);
               }
             });
}

}  // namespace pkv
