#include "tests/bench/serve/workload.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "pkv/block/kv_shape.h"

namespace pkv {
namespace {

// What a stream of random numbers is for: the first step of its seed's path. 0 is arrivals.
enum Purpose : uint64_t { kPrompt = 1, kWarmUp, kPrefix, kTraceBlock, kOutput, kWarmUpOutput };

// Steps below {kPrompt or kWarmUp, i}.
enum PromptPart : uint64_t { kShape, kTokens };

absl::Status Check(const WorkloadOptions& options, bool has_trace) {
  if (!(options.shared_prefix >= 0 && options.shared_prefix <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("shared prefix ", options.shared_prefix, " is not in [0, 1]"));
  }
  if (options.num_prefixes < 1 || options.max_prompt_tokens < 1) {
    return absl::InvalidArgumentError(absl::StrCat(options.num_prefixes, " prefixes, at most ",
                                                   options.max_prompt_tokens,
                                                   " prompt tokens: both must be positive"));
  }
  if (options.num_distinct_prompts < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.num_distinct_prompts, " distinct prompts"));
  }
  if (options.arrivals == Arrivals::kPoisson &&
      !(options.rate_per_s > 0 && std::isfinite(options.rate_per_s))) {
    return absl::InvalidArgumentError(
        absl::StrCat("a rate of ", options.rate_per_s, " requests a second"));
  }
  if (!(options.trace_speed > 0 && std::isfinite(options.trace_speed))) {
    return absl::InvalidArgumentError(absl::StrCat("a trace at speed ", options.trace_speed));
  }
  if (!has_trace) {
    return absl::InvalidArgumentError("lengths or arrivals of a trace need a trace");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Workload> Workload::Make(const WorkloadOptions& options, TokenSource source,
                                        std::vector<TraceRequest> trace) {
  Workload workload(options, std::move(source), std::move(trace));
  const absl::Status checked = Check(options, !workload.needs_trace() || !workload.trace_.empty());
  if (!checked.ok()) return checked;
  return workload;
}

std::optional<PlannedRequest> Workload::Next() {
  if (needs_trace() && next_index_ >= static_cast<int64_t>(trace_.size())) return std::nullopt;
  PlannedRequest request;
  request.index = next_index_++;
  request.prompt_index = options_.num_distinct_prompts > 0
                             ? request.index % options_.num_distinct_prompts
                             : request.index;
  if (options_.arrivals == Arrivals::kPoisson) {
    arrival_s_ += arrivals_.Exponential() / options_.rate_per_s;
  } else if (options_.arrivals == Arrivals::kTrace) {
    arrival_s_ = TraceAt(request.index).arrival_s / options_.trace_speed;
  }
  request.arrival_s = arrival_s_;
  RandomStream random(ChildSeed(options_.seed, {kOutput, uint64_t(request.index)}));
  request.sampling_seed = random.Next();
  request.output_tokens = options_.output_tokens.from_trace() ? TraceAt(request.index).output_tokens
                                                              : options_.output_tokens.Draw(random);
  return request;
}

PlannedPrompt Workload::Prompt(int64_t prompt_index) const {
  return options_.prompt_tokens.from_trace() ? TracePrompt(prompt_index)
                                             : DrawPrompt(kPrompt, prompt_index);
}

PlannedRequest Workload::WarmUp(int64_t i) const {
  PlannedRequest request = {.index = i, .prompt_index = i};
  RandomStream random(ChildSeed(options_.seed, {kWarmUpOutput, uint64_t(i)}));
  request.sampling_seed = random.Next();
  request.output_tokens = options_.output_tokens.from_trace() ? TraceAt(i).output_tokens
                                                              : options_.output_tokens.Draw(random);
  return request;
}

PlannedPrompt Workload::WarmUpPrompt(int64_t i) const { return DrawPrompt(kWarmUp, i); }

PlannedPrompt Workload::DrawPrompt(uint64_t kind, int64_t i) const {
  RandomStream random(ChildSeed(options_.seed, {kind, uint64_t(i), kShape}));
  const int drawn = options_.prompt_tokens.from_trace() ? TraceAt(i).prompt_tokens
                                                        : options_.prompt_tokens.Draw(random);
  const int num_tokens = std::min(drawn, options_.max_prompt_tokens);
  PlannedPrompt prompt;
  prompt.cut = drawn > num_tokens;
  prompt.token_ids.resize(num_tokens);
  int num_shared = static_cast<int>(std::lround(options_.shared_prefix * num_tokens));
  if (options_.align_prefix) num_shared -= num_shared % kBlockTokens;
  const std::span<int32_t> ids(prompt.token_ids);
  const uint64_t prefix = random.Below(options_.num_prefixes);
  source_.Fill(ChildSeed(options_.seed, {kPrefix, prefix}), ids.first(num_shared));
  source_.Fill(ChildSeed(options_.seed, {kind, uint64_t(i), kTokens}), ids.subspan(num_shared));
  source_.Begin(ids);
  prompt.num_shared_tokens = num_shared;
  return prompt;
}

PlannedPrompt Workload::TracePrompt(int64_t i) const {
  const TraceRequest& request = TraceAt(i);
  const int num_tokens = std::min(request.prompt_tokens, options_.max_prompt_tokens);
  PlannedPrompt prompt;
  prompt.cut = request.prompt_tokens > num_tokens;
  prompt.token_ids.resize(num_tokens);
  const std::span<int32_t> ids(prompt.token_ids);
  for (int first = 0, block = 0; first < num_tokens; first += kTraceBlockTokens, ++block) {
    const int count = std::min(kTraceBlockTokens, num_tokens - first);
    source_.Fill(ChildSeed(options_.seed, {kTraceBlock, request.block_ids[block]}),
                 ids.subspan(first, count));
  }
  source_.Begin(ids);
  return prompt;
}

}  // namespace pkv
