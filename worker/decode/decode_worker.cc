#include "worker/decode/decode_worker.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "pkv/block/prefix_hash.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "worker/sequence/stopwatch.h"
#include "worker/sequence/window_flush.h"

namespace pkv {

// A sealed table or block of this worker.
struct DecodeWorker::MadeObject {
  std::vector<std::byte> bytes;
  bool is_block = false;
};

// One request on its way.
struct DecodeWorker::Job {
  CodecParams params;
  Cancelled cancelled;
  std::vector<int32_t> tokens;  // prompt, then what was generated
  int prompt_tokens = 0;
  int num_blocks = 0;
  int num_window_tokens = 0;
  std::vector<ObjectKey> keys;  // tables, blocks, window
  int num_tables = 0;
  uint32_t max_tokens = 0;
  bool ignore_eos = false, put_back = false, refuse_recompute = false;
  std::optional<Sampler> sampler;

  std::unique_ptr<KvSequence> sequence;
  std::vector<float> logits;  // of the last token
  Stopwatch stopwatch;        // since the request
  v1::DecodeStats stats;
  // With put_back: what pkvd may not have because it was made here, blocks recomputed included,
  // without which the flushed ones would follow nothing. A table stands before its blocks.
  std::vector<MadeObject> to_put;
};

absl::StatusOr<DecodeWorker::Job> DecodeWorker::ReadTicket(const v1::DecodeRequest& request) {
  const v1::HandoffTicket& ticket = request.ticket();
  Job job;
  PKV_ASSIGN_OR_RETURN(const Digest profile, Digest::FromBytes(ticket.profile()));
  if (profile != host_.profile()) {
    return absl::FailedPreconditionError(absl::StrCat("the ticket is of model ",
                                                      profile.ToShortHex(), ", this worker runs ",
                                                      host_.profile().ToShortHex()));
  }
  const absl::StatusOr<CodecParams> params =
      PresetByName(ticket.variant().name(), host_.config().kv_shape());
  if (!params.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the ticket's variant is not served here: ", params.status().message()));
  }
  job.params = *params;
  const Variant variant = job.params.variant();
  if (variant.params_digest != ticket.variant().params_digest()) {
    return absl::FailedPreconditionError(
        absl::StrCat("variant '", variant.name, "' of the ticket has params digest ",
                     absl::Hex(ticket.variant().params_digest()), ", here it is ",
                     absl::Hex(variant.params_digest)));
  }
  job.tokens.assign(ticket.token_ids().begin(), ticket.token_ids().end());
  PKV_RETURN_IF_ERROR(host_.CheckTokens(job.tokens));
  job.prompt_tokens = static_cast<int>(job.tokens.size());
  const int num_cached = job.prompt_tokens - 1;
  if (ticket.num_blocks() > uint32_t(num_cached) / kBlockTokens ||
      ticket.num_blocks() * kBlockTokens + ticket.num_window_tokens() != uint32_t(num_cached)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the ticket names ", ticket.num_blocks(), " blocks and ", ticket.num_window_tokens(),
        " window tokens for ", num_cached, " cached tokens"));
  }
  job.num_blocks = static_cast<int>(ticket.num_blocks());
  job.num_window_tokens = static_cast<int>(ticket.num_window_tokens());
  for (const std::string& id : ticket.table_ids()) {
    PKV_ASSIGN_OR_RETURN(const Digest table, Digest::FromBytes(id));
    job.keys.push_back({ObjectKind::kTable, table, variant});
  }
  job.num_tables = ticket.table_ids_size();
  const size_t block_tokens = size_t(job.num_blocks) * kBlockTokens;
  const std::span<const int32_t> cached = std::span(job.tokens).first(num_cached);
  Digest parent;
  for (const Digest& id : PrefixIds(host_.profile(), cached.first(block_tokens))) {
    job.keys.push_back({ObjectKind::kBlock, id, variant});
    parent = id;
  }
  if (job.num_window_tokens > 0) {
    job.keys.push_back({ObjectKind::kWindow,
                        TailId(host_.profile(), parent, cached.subspan(block_tokens)), variant});
  }

  const v1::Sampling& sampling = request.sampling();
  if (sampling.max_tokens() < 1) return absl::InvalidArgumentError("max_tokens 0: at least 1");
  job.max_tokens = std::min<uint32_t>(
      sampling.max_tokens(), host_.config().max_position_embeddings - job.prompt_tokens + 1);
  SamplingParams sampler;
  sampler.temperature = sampling.temperature();
  sampler.top_p = sampling.top_p() == 0 ? 1 : sampling.top_p();
  sampler.seed = sampling.seed();
  PKV_ASSIGN_OR_RETURN(job.sampler, Sampler::Make(sampler));
  job.ignore_eos = sampling.ignore_eos();
  job.put_back = request.put_back();
  job.refuse_recompute = request.refuse_recompute();
  job.logits.resize(host_.config().vocab_size);
  return job;
}

absl::Status DecodeWorker::Decode(const v1::DecodeRequest& request, const Emit& emit,
                                  const Cancelled& cancelled) {
  PKV_ASSIGN_OR_RETURN(Job job, ReadTicket(request));
  job.cancelled = cancelled;
  if (const absl::Status fetched = FetchAndForward(job); !fetched.ok()) {
    if (job.refuse_recompute) return fetched;
    Log(LogLevel::kWarning, "cache did not deliver, computing the prompt",
        {{"reason", fetched.ToString()}, {"tokens", job.prompt_tokens}});
    metrics_.CountRecompute(fetched);
    job.stats.set_recompute_reason(fetched.ToString());
    PKV_RETURN_IF_ERROR(Recompute(job));
  }
  PKV_RETURN_IF_ERROR(Generate(job, emit));
  if (job.put_back) PutBack(job);
  metrics_.CountDecode(job.stats, static_cast<int>(job.tokens.size()) - job.prompt_tokens);
  v1::DecodeEvent event;
  *event.mutable_stats() = job.stats;
  return emit(event) ? absl::OkStatus() : absl::CancelledError("the caller went away");
}

absl::Status DecodeWorker::FetchAndForward(Job& job) {
  PKV_ASSIGN_OR_RETURN(job.sequence, host_.MakeSequence(job.params));
  if (job.keys.empty()) return ForwardLast(job);
  // What follows is timed from the attachment on.
  const double attached_seconds = job.stopwatch.Seconds();
  PKV_RETURN_IF_ERROR(
      job.sequence->AttachPrefix(cache_.StartGet(job.keys), job.num_tables, job.num_window_tokens));
  PKV_RETURN_IF_ERROR(job.sequence->WaitForLayer(0));
  job.stats.set_first_layer_seconds(job.stopwatch.Seconds());
  PKV_RETURN_IF_ERROR(ForwardLast(job));
  // The forward pass has waited for every layer.
  job.stats.set_fetch_seconds(attached_seconds + job.sequence->prefix_seconds());
  job.stats.set_fetched_bytes(job.sequence->received_bytes());
  return absl::OkStatus();
}

// Computes what the ticket promised: same tokens, same preset.
absl::Status DecodeWorker::Recompute(Job& job) {
  PKV_ASSIGN_OR_RETURN(job.sequence, host_.MakeSequence(job.params));
  const std::span<const int32_t> cached = std::span(job.tokens).first(job.prompt_tokens - 1);
  KvSequence& sequence = *job.sequence;
  PKV_RETURN_IF_ERROR(ComputePrefill(host_, sequence, cached, [&job](int) -> absl::Status {
    return job.cancelled && job.cancelled() ? absl::CancelledError("the caller went away")
                                            : absl::OkStatus();
  }));
  if (job.num_blocks > 0) {
    PKV_RETURN_IF_ERROR(EncodeBlocks(job.num_blocks, Phase::kPrefill, cached, sequence));
    KeepForPutBack(job);
  }
  job.stats.set_recomputed_tokens(static_cast<uint32_t>(cached.size()));
  return ForwardLast(job);
}

absl::Status DecodeWorker::ForwardLast(Job& job) {
  const int64_t position = static_cast<int64_t>(job.tokens.size()) - 1;
  return host_.Forward(std::span(job.tokens).last(1), position, *job.sequence, 0,
                       job.logits.data());
}

absl::Status DecodeWorker::Generate(Job& job, const Emit& emit) {
  StreamDecoder decoder(&host_.tokenizer());
  Stopwatch decode_stopwatch;
  for (uint32_t i = 0; i < job.max_tokens; ++i) {
    if (i > 0) PKV_RETURN_IF_ERROR(ForwardLast(job));
    PKV_RETURN_IF_ERROR(FlushAfterStep(job));
    PKV_ASSIGN_OR_RETURN(const SampledToken sampled, job.sampler->Sample(job.logits));
    job.tokens.push_back(sampled.token_id);
    v1::DecodeEvent event;
    event.mutable_token()->set_token_id(sampled.token_id);
    event.mutable_token()->set_logprob(sampled.logprob);
    PKV_ASSIGN_OR_RETURN(*event.mutable_token()->mutable_text(), decoder.Add(sampled.token_id));
    if (i == 0) {
      job.stats.set_first_token_seconds(job.stopwatch.Seconds());
      decode_stopwatch = Stopwatch();
    }
    if (!emit(event)) return absl::CancelledError("the caller went away");
    const std::vector<int32_t>& eos = host_.config().eos_token_ids;
    if (!job.ignore_eos && std::find(eos.begin(), eos.end(), sampled.token_id) != eos.end()) break;
  }
  job.stats.set_decode_seconds(decode_stopwatch.Seconds());
  return absl::OkStatus();
}

// Turns tokens that have left the recent window into a block, by the preset's rule.
absl::Status DecodeWorker::FlushAfterStep(Job& job) {
  PKV_ASSIGN_OR_RETURN(const bool flushed, FlushWindow(job.tokens, *job.sequence));
  if (!flushed) return absl::OkStatus();
  job.stats.set_flushed_blocks(job.stats.flushed_blocks() + 1);
  KeepForPutBack(job);
  return absl::OkStatus();
}

// Copies what the last FinishBlocks sealed, the table before its blocks.
void DecodeWorker::KeepForPutBack(Job& job) {
  if (!job.put_back) return;
  const KvSequence::MadeObjects objects = job.sequence->made_objects();
  const auto keep = [&job](const ObjectBuilder& builder, bool is_block) {
    job.to_put.push_back({{builder.bytes().begin(), builder.bytes().end()}, is_block});
  };
  if (objects.table != nullptr) keep(*objects.table, false);
  for (const ObjectBuilder* block : objects.blocks) keep(*block, true);
}

// Stores the blocks made here. What the cache refuses is only logged: the answer was given already.
void DecodeWorker::PutBack(Job& job) {
  if (job.to_put.empty()) return;
  std::vector<std::span<const std::byte>> objects;
  for (const MadeObject& object : job.to_put) objects.push_back(object.bytes);
  const std::vector<PutOutcome> outcomes = cache_.Put(objects);
  uint32_t stored = 0;
  for (size_t i = 0; i < outcomes.size(); ++i) {
    if (!outcomes[i].status.ok()) {
      Log(LogLevel::kWarning, "not put back", {{"reason", outcomes[i].status.ToString()}});
    } else if (job.to_put[i].is_block) {
      ++stored;
    }
  }
  job.stats.set_put_back_blocks(stored);
}

}  // namespace pkv
