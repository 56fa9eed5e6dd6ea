#include "worker/batch/sequence_run.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"

namespace pkv {
namespace {

Sampler MakeSampler(const SamplingParams& params) {
  absl::StatusOr<Sampler> sampler = Sampler::Make(params);
  PKV_CHECK(sampler.ok(), sampler.status().ToString());
  return *std::move(sampler);
}

}  // namespace

int MaxPages(const BatchRequest& request) {
  // After the last step all tokens but the last are cached.
  const int num_prompt_tokens = static_cast<int>(request.tokens.size());
  int in_blocks = request.num_blocks * kBlockTokens;
  for (int i = 0; i < request.max_tokens; ++i) {
    in_blocks = BlockTokensAfterDecodeStep(request.params, num_prompt_tokens + i, in_blocks);
  }
  return in_blocks / kBlockTokens;
}

absl::Status CheckFits(const BatchRequest& request, const EngineLimits& limits) {
  if (request.num_window_tokens > kMaxWindowTokens) {
    return absl::InvalidArgumentError(absl::StrCat("a window of ", request.num_window_tokens,
                                                   " tokens; at most ", kMaxWindowTokens));
  }
  const int num_pages = MaxPages(request);
  const std::string need =
      absl::StrCat(num_pages, " blocks for ", request.tokens.size(), " prompt tokens and ",
                   request.max_tokens, " generated ones");
  if (num_pages > limits.max_blocks) {
    return absl::InvalidArgumentError(
        absl::StrCat(need, "; a sequence has at most ", limits.max_blocks));
  }
  if (num_pages > limits.num_pages) {
    return absl::ResourceExhaustedError(
        absl::StrCat(need, "; this worker has pages for ", limits.num_pages));
  }
  return absl::OkStatus();
}

SequenceRun::SequenceRun(uint64_t id_in, BatchRequest request_in)
    : id(id_in),
      request(std::move(request_in)),
      num_prompt_tokens(static_cast<int>(request.tokens.size())),
      max_pages(MaxPages(request)),
      greedy(request.sampling.temperature == 0),
      resident(request.num_blocks),
      tokens(request.tokens),
      sampler(MakeSampler(request.sampling)) {}

void SequenceRun::Place(int slot_index,
                        std::vector<std::optional<PagePool::Resident>> resident_blocks,
                        const std::vector<int32_t>& fresh) {
  slot = slot_index;
  resident = std::move(resident_blocks);
  pages.clear();
  size_t num_taken = 0;
  for (int i = 0; i < max_pages; ++i) {
    const bool is_resident = i < request.num_blocks && resident[i].has_value();
    pages.push_back(is_resident ? resident[i]->page : fresh[num_taken++]);
  }
  PKV_CHECK(num_taken == fresh.size(), num_taken, " of ", fresh.size());
}

EnginePrefix SequenceRun::Prefix() const {
  EnginePrefix prefix;
  prefix.num_tables = request.num_tables;
  prefix.num_window_tokens = request.num_window_tokens;
  prefix.pages.assign(pages.begin(), pages.begin() + request.num_blocks);
  for (int i = 0; i < request.num_blocks; ++i) {
    prefix.resident.emplace_back();
    if (resident[i].has_value()) prefix.resident.back() = resident[i]->header;
    if (i == 0 || !resident[i].has_value()) prefix.fetched.push_back(i);
  }
  return prefix;
}

std::vector<Digest> SequenceRun::Chain() const {
  // Without a block there is the window alone.
  std::vector<Digest> chain;
  const auto first = request.keys.begin() + request.num_tables;
  const auto last = request.num_blocks > 0 ? first + request.num_blocks : request.keys.end();
  for (auto key = first; key != last; ++key) chain.push_back(key->id);
  return chain;
}

std::vector<ObjectKey> SequenceRun::FetchedKeys() const {
  const auto blocks = request.keys.begin() + request.num_tables;
  std::vector<ObjectKey> keys(request.keys.begin(), blocks);
  for (int i = 0; i < request.num_blocks; ++i) {
    if (i == 0 || !resident[i].has_value()) keys.push_back(blocks[i]);
  }
  keys.insert(keys.end(), blocks + request.num_blocks, request.keys.end());
  return keys;
}

bool SequenceRun::IsFlushDue() const {
  const int in_blocks = num_blocks * kBlockTokens;
  return BlockTokensAfterDecodeStep(request.params, num_cached, in_blocks) > in_blocks;
}

void SequenceRun::TakeToken(const StepOutput& output) {
  SampledToken token{output.greedy_token, output.greedy_logprob};
  if (!greedy) {
    const absl::StatusOr<SampledToken> sampled = sampler.Sample(output.logits);
    if (!sampled.ok()) {
      ended = sampled.status();
      return;
    }
    token = *sampled;
  }
  tokens.push_back(token.token_id);
  const int num_generated = static_cast<int>(tokens.size()) - num_prompt_tokens;
  if (num_generated == 1) {
    stats.set_first_token_seconds(since_request.Seconds());
    since_first_token = Stopwatch();
  }
  since_token = Stopwatch();
  if (const absl::Status taken = request.on_token(token); !taken.ok()) {
    ended = taken;
    return;
  }
  const std::vector<int32_t>& ends = request.end_tokens;
  const bool is_end = std::find(ends.begin(), ends.end(), token.token_id) != ends.end();
  if (is_end || num_generated == request.max_tokens) {
    stats.set_decode_seconds(since_first_token.Seconds());
    ended = absl::OkStatus();
  }
}

}  // namespace pkv
