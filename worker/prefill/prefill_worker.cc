#include "worker/prefill/prefill_worker.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "pkv/block/object_view.h"
#include "pkv/block/prefix_hash.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "worker/prefill/direct_store.h"
#include "worker/prefill/error_sample.h"
#include "worker/sequence/stopwatch.h"

namespace pkv {
namespace {

// How often a prompt is computed when other workers store parts of it meanwhile. Each time it
// starts from what they have stored.
constexpr int kMaxAttempts = 3;

// K and V of one token as fp16.
uint64_t LogicalTokenBytes(const KvShape& shape) {
  return uint64_t{4} * shape.num_layers * shape.num_kv_heads * shape.head_dim;
}

// What is put layer by layer. A table is put when it is whole.
std::vector<const ObjectBuilder*> PutObjects(const KvSequence::MadeObjects& made) {
  std::vector<const ObjectBuilder*> objects = made.blocks;
  if (made.window != nullptr) objects.push_back(made.window);
  return objects;
}

// In the order of a get.
std::vector<const ObjectBuilder*> AllObjects(const KvSequence::MadeObjects& made) {
  std::vector<const ObjectBuilder*> objects;
  if (made.table != nullptr) objects.push_back(made.table);
  const std::vector<const ObjectBuilder*> others = PutObjects(made);
  objects.insert(objects.end(), others.begin(), others.end());
  return objects;
}

// What StartBlocks made of a sequence, on its way into a direct store. Thread-compatible.
class DirectDraft {
 public:
  // `store` null: none. It and the sequence outlive this.
  DirectDraft(DirectStore* store, const KvSequence& sequence)
      : store_(store),
        made_(sequence.made_objects()),
        num_layers_(sequence.config().shape.num_layers) {
    if (AllObjects(made_).empty()) store_ = nullptr;
  }

  // Null: there is no store, or nothing was made. Valid until Publish(). The first call takes room:
  // earlier, a prompt that waits for the device would have those of others evicted.
  DeviceFrames device_frames() {
    if (store_ == nullptr) return nullptr;
    return [this](int layer) { return FramesOf(layer); };
  }
  // There was room for it.
  bool is_filled() const { return draft_ != nullptr; }
  // REQUIRES: is_filled(), and the sequence's FinishBlocks has sealed what it made.
  void Publish(const KvSequence& sequence) {
    store_->Publish(std::move(draft_), AllObjects(sequence.made_objects()));
  }

 private:
  KvSequence::LayerFrames FramesOf(int layer) {
    if (!std::exchange(has_asked_, true)) Reserve();
    KvSequence::LayerFrames frames;
    if (draft_ == nullptr) return frames;
    int next = 0;
    if (made_.table != nullptr) frames.table = draft_->frame(next++, layer);
    for (size_t i = 0; i < made_.blocks.size(); ++i) {
      frames.blocks.push_back(draft_->frame(next++, layer));
    }
    if (made_.window != nullptr) frames.window = draft_->frame(next, layer);
    return frames;
  }
  void Reserve() {
    std::vector<uint64_t> frame_bytes;
    for (const ObjectBuilder* object : AllObjects(made_)) {
      frame_bytes.push_back(object->frame(0).size());
    }
    draft_ = store_->Reserve(frame_bytes, num_layers_);
  }

  DirectStore* store_;
  const KvSequence::MadeObjects made_;
  const int num_layers_;
  bool has_asked_ = false;
  std::unique_ptr<DirectStore::Draft> draft_;
};

}  // namespace

// One request on its way.
struct PrefillWorker::Job {
  CodecParams params;
  Cancelled cancelled;
  std::vector<int32_t> tokens;  // to cache: the prompt without its last token
  int num_blocks = 0;           // that hold its beginning when done
  std::vector<Digest> prefix_ids;
  CacheClient* cache = nullptr;  // that keeps this prompt's objects
  std::unique_ptr<KvSequence> sequence;
  v1::HandoffTicket* ticket = nullptr;
  v1::PrefillStats* stats = nullptr;
  bool lost_race = false;      // what was computed could not be stored for what another had stored
  bool has_conflicts = false;  // another chain is stored under some of the keys
  std::optional<Stopwatch> put_stopwatch;  // since the upload's begin
  CodecWork work;

  int num_window_tokens() const {
    return static_cast<int>(tokens.size()) - num_blocks * kBlockTokens;
  }
  Digest parent() const { return prefix_ids.empty() ? Digest{} : prefix_ids.back(); }
  // REQUIRES: num_window_tokens() is positive.
  Digest TailOf(const Digest& profile) const {
    return TailId(profile, parent(), std::span(tokens).subspan(size_t(num_blocks) * kBlockTokens));
  }
  // Any layer, and the same one for the same prompt.
  int SampledLayer(int num_layers) const { return parent().bytes[0] % num_layers; }
  ObjectKey BlockKey(int i) const { return {ObjectKind::kBlock, prefix_ids[i], params.variant()}; }
  ObjectKey TableKey(const Digest& id) const { return {ObjectKind::kTable, id, params.variant()}; }
  // REQUIRES: num_window_tokens() is positive.
  ObjectKey WindowKey(const Digest& profile) const {
    return {ObjectKind::kWindow, TailOf(profile), params.variant()};
  }
  void AddTable(const Digest& id) {
    for (const std::string& known : ticket->table_ids()) {
      if (id.AsBytes() == known) return;
    }
    ticket->add_table_ids(std::string(id.AsBytes()));
  }
};

absl::StatusOr<v1::PrefillResponse> PrefillWorker::Prefill(const v1::PrefillRequest& request,
                                                           const Cancelled& cancelled) {
  v1::PrefillResponse response;
  Job job;
  job.cancelled = cancelled;
  job.ticket = response.mutable_ticket();
  job.stats = response.mutable_stats();
  PKV_ASSIGN_OR_RETURN(job.params, PresetByName(request.preset(), host_.config().kv_shape()));
  PKV_RETURN_IF_ERROR(executor_.CheckVariant(job.params));
  job.work.preset = job.params.name;
  PKV_ASSIGN_OR_RETURN(std::vector<int32_t> prompt, host_.ResolvePrompt(request.prompt()));
  job.tokens.assign(prompt.begin(), prompt.end() - 1);
  job.num_blocks =
      BlockTokensAfterPrefill(job.params, static_cast<int>(job.tokens.size())) / kBlockTokens;
  job.prefix_ids = PrefixIds(host_.profile(),
                             std::span(job.tokens).first(size_t(job.num_blocks) * kBlockTokens));

  const KvShape shape = host_.config().kv_shape();
  job.ticket->set_profile(std::string(host_.profile().AsBytes()));
  job.ticket->mutable_variant()->set_name(job.params.variant().name);
  job.ticket->mutable_variant()->set_params_digest(job.params.variant().params_digest);
  job.ticket->mutable_token_ids()->Add(prompt.begin(), prompt.end());
  job.ticket->set_num_blocks(job.num_blocks);
  job.ticket->set_num_window_tokens(job.num_window_tokens());
  job.stats->set_prompt_tokens(static_cast<uint32_t>(prompt.size()));
  job.stats->set_logical_bytes(job.tokens.size() * LogicalTokenBytes(shape));
  PKV_RETURN_IF_ERROR(Run(job, request.ignore_cache()));
  OfferDirect(job);
  worker_metrics_.CountPrefill(*job.stats);
  metrics_.CountCodec(job.work);
  return response;
}

absl::Status PrefillWorker::Run(Job& job, bool ignore_cache) {
  if (job.tokens.empty()) {
    job.stats->set_stored(true);
    return absl::OkStatus();
  }
  ChooseServer(job);
  for (int attempt = 1;; ++attempt) {
    LookupResult found;
    PrefixTurns::Turn turn;
    if (!ignore_cache) {
      PKV_ASSIGN_OR_RETURN(turn, FindCachedPrefix(job, found));
      if (AnswerFromCache(job, found)) return absl::OkStatus();
    }
    PKV_RETURN_IF_ERROR(ComputeFrom(job, found));
    if (!job.lost_race || attempt == kMaxAttempts) return absl::OkStatus();
    ignore_cache = false;
  }
}

absl::Status PrefillWorker::ComputeFrom(Job& job, const LookupResult& found) {
  // A prefix that is damaged, has vanished or belongs to another chain is found out while it is
  // being used: start once more without it.
  for (const bool use_cache : {found.num_blocks > 0, false}) {
    job.ticket->clear_table_ids();
    job.stats->set_cached_tokens(0);
    job.stats->clear_store_error();
    job.lost_race = false;
    PKV_ASSIGN_OR_RETURN(job.sequence, host_.MakeSequence(job.params));
    absl::Status status;
    if (use_cache) status = AttachCachedPrefix(job, found);
    if (status.ok()) status = ComputeAndStore(job);
    if (status.ok() || !use_cache || absl::IsCancelled(status)) return status;
    Log(LogLevel::kWarning, "cached prefix unusable, computing it",
        {{"reason", status.ToString()}});
    worker_metrics_.CountRecompute(status);
  }
  return absl::OkStatus();
}

// Chooses by what is known of the servers now; true when that is another one than before.
bool PrefillWorker::ChooseServer(Job& job) {
  std::vector<Digest> chain = job.prefix_ids;
  if (chain.empty()) chain.push_back(job.TailOf(host_.profile()));
  CacheClient* const chosen = &cluster_.ServerFor(chain, /*hint=*/"");
  job.ticket->set_cache_server(chosen->address());
  return std::exchange(job.cache, chosen) != chosen;
}

// The longest stored prefix, and the turn to compute what is missing; without a missing block none.
absl::StatusOr<PrefixTurns::Turn> PrefillWorker::FindCachedPrefix(Job& job, LookupResult& found) {
  while (true) {
    found = Lookup(job);
    if (found.num_blocks >= job.num_blocks) return PrefixTurns::Turn();
    PKV_ASSIGN_OR_RETURN(PrefixTurns::Turn turn,
                         turns_.Take(job.prefix_ids[found.num_blocks], job.cancelled));
    if (turn.is_held()) return turn;
  }
}

// A cache that is away has nothing.
LookupResult PrefillWorker::Lookup(Job& job) {
  if (job.num_blocks == 0) return {};
  const Stopwatch stopwatch;
  const Variant variants[] = {job.params.variant()};
  absl::StatusOr<LookupResult> found = job.cache->Lookup(job.prefix_ids, variants);
  job.stats->set_lookup_seconds(job.stats->lookup_seconds() + stopwatch.Seconds());
  if (found.ok()) return *std::move(found);
  Log(LogLevel::kWarning, "lookup failed", {{"reason", found.status().ToString()}});
  worker_metrics_.CountRecompute(found.status());
  // So that the next prompt that begins like this one finds it.
  ChooseServer(job);
  return {};
}

// True when blocks, tables and window of this very prompt are all stored: nothing to compute.
bool PrefillWorker::AnswerFromCache(Job& job, const LookupResult& found) {
  if (found.num_blocks < job.num_blocks) return false;
  job.ticket->clear_table_ids();
  std::vector<ObjectKey> keys;
  for (const Digest& id : found.table_ids) {
    job.AddTable(id);
    keys.push_back(job.TableKey(id));
  }
  const size_t num_tables = keys.size();
  // Present is not enough: blocks of chains that raced may not follow one another.
  if (job.params.encoding.has_patterns) {
    for (int i = 0; i < job.num_blocks; ++i) keys.push_back(job.BlockKey(i));
  }
  const size_t num_chained = keys.size();
  if (job.num_window_tokens() > 0) {
    keys.push_back(job.WindowKey(host_.profile()));
  }
  uint64_t cache_bytes = found.bytes, window_bytes = 0;
  if (!keys.empty()) {
    const Stopwatch stopwatch;
    const absl::StatusOr<std::vector<ObjectStat>> stats = job.cache->Stat(keys);
    job.stats->set_lookup_seconds(job.stats->lookup_seconds() + stopwatch.Seconds());
    if (!stats.ok()) return false;
    std::vector<ObjectHeader> headers;
    for (size_t i = 0; i < stats->size(); ++i) {
      const ObjectStat& stat = (*stats)[i];
      if (!stat.present) return false;
      const bool is_block = i >= num_tables && i < num_chained;
      if (!is_block) cache_bytes += stat.object_bytes;  // blocks: found.bytes
      if (i >= num_chained) continue;
      const absl::StatusOr<ObjectHeader> header = ParseHeader(stat.head);
      if (!header.ok()) return false;
      headers.push_back(*header);
    }
    const std::span<const ObjectHeader> all(headers);
    if (num_chained > num_tables && UsableBlocks(host_.config().kv_shape(), all.first(num_tables),
                                                 all.subspan(num_tables)) < job.num_blocks) {
      return false;
    }
    if (job.num_window_tokens() > 0) window_bytes = stats->back().object_bytes;
  }
  job.stats->set_cached_tokens(static_cast<uint32_t>(job.tokens.size()));
  job.stats->set_cache_bytes(cache_bytes);
  job.stats->set_window_bytes(window_bytes);
  job.stats->set_table_bytes(cache_bytes - window_bytes - found.bytes);
  job.stats->set_stored(true);
  job.stats->clear_store_error();
  return true;
}

// Attaches as much of the prefix as forms one chain to the job's sequence.
absl::Status PrefillWorker::AttachCachedPrefix(Job& job, const LookupResult& found) {
  const int num_tables = static_cast<int>(found.table_ids.size());
  std::vector<ObjectKey> keys;
  for (const Digest& id : found.table_ids) keys.push_back(job.TableKey(id));
  for (int i = 0; i < found.num_blocks; ++i) keys.push_back(job.BlockKey(i));

  std::unique_ptr<GetStream> stream;
  int usable = found.num_blocks;
  while (true) {
    stream = job.cache->StartGet(std::span(keys).first(num_tables + usable));
    PKV_RETURN_IF_ERROR(stream->WaitForManifest());
    std::vector<ObjectHeader> headers;
    for (int i = 0; i < stream->num_objects(); ++i) headers.push_back(stream->header(i));
    const std::span<const ObjectHeader> all(headers);
    const int chained =
        UsableBlocks(host_.config().kv_shape(), all.first(num_tables), all.subspan(num_tables));
    if (chained == usable) break;
    stream->Cancel();
    // No reader can use what follows, and written once it would keep ours out for good.
    const std::span<const ObjectKey> broken =
        std::span(keys).subspan(num_tables + chained, usable - chained);
    Log(LogLevel::kWarning, "deleting blocks of a broken chain", {{"blocks", broken.size()}});
    job.cache->Delete(broken).IgnoreError();
    if (chained == 0) {
      return absl::FailedPreconditionError(
          "the first stored block refers to no table stored with it");
    }
    usable = chained;
  }
  PKV_RETURN_IF_ERROR(
      job.sequence->AttachPrefix(std::move(stream), num_tables, /*num_window_tokens=*/0));
  job.stats->set_cached_tokens(usable * kBlockTokens);
  for (const ObjectHeader& header : job.sequence->block_headers()) {
    if (!header.table.IsZero()) job.AddTable(header.table);
  }
  return absl::OkStatus();
}

absl::Status PrefillWorker::StartPut(Job& job, std::span<const ObjectBuilder* const> builders,
                                     std::unique_ptr<PutStream>& put) {
  std::vector<ObjectDescriptor> descriptors;
  for (const ObjectBuilder* builder : builders) {
    const ObjectHeader& header = builder->header();
    descriptors.push_back({header.key(), header.num_layers, builder->frame(0).size()});
  }
  absl::StatusOr<std::unique_ptr<PutStream>> started = job.cache->StartPut(descriptors);
  // Gone, or draining, since the lookup. Another server has no use for blocks without their prefix.
  if (absl::IsUnavailable(started.status()) && job.stats->cached_tokens() == 0 &&
      ChooseServer(job)) {
    started = job.cache->StartPut(descriptors);
  }
  PKV_RETURN_IF_ERROR(started.status());
  put = *std::move(started);
  return absl::OkStatus();
}

// Encodes on the executor, putting each layer as it is done.
absl::Status PrefillWorker::Compute(Job& job, const DeviceFrames& device_frames,
                                    std::unique_ptr<PutStream>& put, absl::Status& put_status) {
  KvSequence& sequence = *job.sequence;
  const std::vector<const ObjectBuilder*> builders = PutObjects(sequence.made_objects());
  const Stopwatch compute_stopwatch;
  const auto on_encoded = [&](int layer) {
    // Not before the first layer: a stream that waits for the model's turn stalls to pkvd.
    if (!job.put_stopwatch.has_value() && !builders.empty()) {
      job.put_stopwatch.emplace();
      put_status = StartPut(job, builders, put);
    }
    if (put == nullptr || !put_status.ok()) return;
    std::vector<std::span<const std::byte>> frames;
    for (const ObjectBuilder* builder : builders) frames.push_back(builder->frame(layer));
    put_status = put->WriteLayer(layer, frames);
  };
  const absl::Status computed =
      executor_.Run(sequence, job.tokens, job.cancelled, on_encoded, device_frames);
  job.stats->set_compute_seconds(compute_stopwatch.Seconds());
  job.stats->set_fetched_bytes(sequence.received_bytes());
  job.stats->set_fetch_seconds(sequence.prefix_seconds());
  // With a cached prefix it may be the cache's error; without one it comes again.
  if (absl::IsInternal(computed) && job.stats->cached_tokens() == 0 && on_failure_) {
    on_failure_(computed);
  }
  return computed;
}

// Work that was done once more is work.
void PrefillWorker::CountWork(Job& job) {
  const KvSequence& sequence = *job.sequence;
  job.stats->set_encode_seconds(sequence.mine_seconds() + sequence.encode_seconds());
  job.work.mine_seconds += sequence.mine_seconds();
  job.work.encode_seconds += sequence.encode_seconds();
  job.work.input_bytes += (job.tokens.size() - job.stats->cached_tokens()) *
                          LogicalTokenBytes(host_.config().kv_shape());
  for (const ObjectBuilder* builder : AllObjects(sequence.made_objects())) {
    job.work.output_bytes += builder->bytes().size();
  }
}

absl::Status PrefillWorker::ComputeAndStore(Job& job) {
  KvSequence& sequence = *job.sequence;
  const int num_missing = job.num_blocks - sequence.num_blocks();
  PKV_RETURN_IF_ERROR(
      sequence.StartBlocks(num_missing, Phase::kPrefill, job.tokens, /*with_window=*/true));
  DirectDraft draft(direct_.store, sequence);
  job.put_stopwatch.reset();
  job.has_conflicts = false;
  absl::Status put_status;
  std::unique_ptr<PutStream> put;
  PKV_RETURN_IF_ERROR(Compute(job, draft.device_frames(), put, put_status));
  std::optional<ErrorSample> sample =
      ErrorSample::Take(sequence, job.SampledLayer(host_.config().num_layers));
  PKV_RETURN_IF_ERROR(sequence.FinishBlocks());
  if (sample.has_value()) {
    const absl::StatusOr<RelativeError> error = sample->Measure(sequence);
    if (error.ok()) metrics_.ObserveRelativeError(error->k, error->v);
  }
  CountWork(job);
  if (put != nullptr && put_status.ok()) put_status = CommitAll(job, *put);
  if (job.put_stopwatch.has_value()) job.stats->set_put_seconds(job.put_stopwatch->Seconds());
  // What pkvd does not have can be fetched here all the same. But a chain beside the one that is
  // stored would be found by tickets of that one.
  if (draft.is_filled() && !job.has_conflicts) {
    draft.Publish(sequence);
    const ObjectBuilder* table = sequence.made_objects().table;
    if (table != nullptr) job.AddTable(table->header().id);
  }
  job.stats->set_stored(put_status.ok());
  if (!put_status.ok()) {
    job.stats->set_store_error(put_status.ToString());
    Log(LogLevel::kWarning, "prompt not stored", {{"reason", put_status.ToString()}});
  }
  return absl::OkStatus();
}

// Says in the ticket where its objects are on a GPU, if all of them are.
void PrefillWorker::OfferDirect(Job& job) {
  if (direct_.store == nullptr || job.tokens.empty()) return;
  std::vector<ObjectKey> keys;
  for (const std::string& id : job.ticket->table_ids()) {
    keys.push_back(job.TableKey(Digest::FromBytes(id).value()));
  }
  for (int i = 0; i < job.num_blocks; ++i) keys.push_back(job.BlockKey(i));
  if (job.num_window_tokens() > 0) keys.push_back(job.WindowKey(host_.profile()));
  if (direct_.store->HasAll(keys)) job.ticket->set_direct_server(direct_.address);
}

absl::Status PrefillWorker::CommitAll(Job& job, PutStream& put) {
  const KvSequence::MadeObjects objects = job.sequence->made_objects();
  uint64_t put_bytes = 0;
  job.stats->set_table_bytes(job.sequence->attached_table_bytes());
  // The table first: a block whose table is not there is refused.
  if (objects.table != nullptr) {
    const std::span<const std::byte> table[] = {objects.table->bytes()};
    const PutOutcome outcome = job.cache->Put(table).front();
    PKV_RETURN_IF_ERROR(outcome.status);
    if (outcome.stored) put_bytes += objects.table->bytes().size();
    job.stats->set_table_bytes(objects.table->bytes().size());
    job.AddTable(objects.table->header().id);
  }
  const std::vector<const ObjectBuilder*> builders = PutObjects(objects);
  if (objects.window != nullptr) job.stats->set_window_bytes(objects.window->bytes().size());
  for (size_t i = 0; i < builders.size(); ++i) {
    PKV_RETURN_IF_ERROR(put.Commit(static_cast<int>(i), builders[i]->head()));
  }
  const std::vector<PutOutcome> outcomes = put.Finish();
  uint64_t cache_bytes = job.stats->table_bytes() + job.stats->window_bytes();
  for (const ObjectHeader& header : job.sequence->block_headers())
    cache_bytes += header.object_bytes;
  job.stats->set_cache_bytes(cache_bytes);
  absl::Status failed;
  for (size_t i = 0; i < builders.size(); ++i) {
    if (outcomes[i].stored) put_bytes += builders[i]->bytes().size();
    // Another prefill of the same prefix was first. Its block serves as well.
    if (absl::IsAlreadyExists(outcomes[i].status)) {
      job.has_conflicts = true;
    } else {
      failed.Update(outcomes[i].status);
    }
  }
  // Not before all are seen: a conflict behind the first error is one, too.
  PKV_RETURN_IF_ERROR(failed);
  job.stats->set_put_bytes(put_bytes);
  return job.has_conflicts && job.params.encoding.has_patterns ? AdoptStoredChain(job)
                                                               : absl::OkStatus();
}

// The ticket of a prompt of which others have stored blocks: good when all are there, in one chain.
absl::Status PrefillWorker::AdoptStoredChain(Job& job) {
  std::vector<ObjectKey> keys;
  for (int i = 0; i < job.num_blocks; ++i) keys.push_back(job.BlockKey(i));
  PKV_ASSIGN_OR_RETURN(const std::vector<ObjectStat> stats, job.cache->Stat(keys));
  job.ticket->clear_table_ids();
  for (const ObjectStat& stat : stats) {
    absl::StatusOr<ObjectHeader> header = absl::NotFoundError("a block is not stored");
    if (stat.present) header = ParseHeader(stat.head);
    if (header.ok()) job.AddTable(header->table);
    if (!header.ok() || job.ticket->table_ids_size() > 1) {
      job.lost_race = true;
      return absl::AbortedError("another prefill has stored a part of this prompt meanwhile");
    }
  }
  return absl::OkStatus();
}

}  // namespace pkv
