#include "worker/ctl/generation_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"
#include "worker/engine/sampler.h"
#include "worker/sequence/stopwatch.h"

namespace pkv {

void AddGenerationFlags(CLI::App& command, GenerationFlags& flags) {
  command.add_option("--prompt", flags.prompt, "prompt text");
  command.add_option("--prompt-file", flags.prompt_file, "file with the prompt text");
  command.add_option("--token-ids", flags.token_ids, "prompt as token ids, comma-separated")
      ->delimiter(',');
  command.add_option("--max-tokens", flags.max_tokens, "tokens to generate at most")
      ->check(CLI::Range(1u, 1u << 20))
      ->capture_default_str();
  command.add_option("--temperature", flags.temperature, "0: greedy")->capture_default_str();
  command.add_option("--top-p", flags.top_p, "nucleus sampling; 1: off")->capture_default_str();
  command.add_option("--seed", flags.seed)->capture_default_str();
}

absl::StatusOr<v1::Prompt> ReadPrompt(const GenerationFlags& flags) {
  const int given = (flags.prompt.empty() ? 0 : 1) + (flags.prompt_file.empty() ? 0 : 1) +
                    (flags.token_ids.empty() ? 0 : 1);
  if (given != 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        given, " of --prompt, --prompt-file and --token-ids given; exactly one is needed"));
  }
  v1::Prompt prompt;
  prompt.mutable_token_ids()->Add(flags.token_ids.begin(), flags.token_ids.end());
  prompt.set_text(flags.prompt);
  if (!flags.prompt_file.empty()) {
    std::ifstream file(flags.prompt_file, std::ios::binary);
    std::stringstream text;
    if (!file || !(text << file.rdbuf())) {
      return absl::NotFoundError(
          absl::StrCat("cannot read prompt file ", flags.prompt_file, ", or it is empty"));
    }
    prompt.set_text(text.str());
  }
  return prompt;
}

v1::DecodeRequest MakeDecodeRequest(const GenerationFlags& flags) {
  v1::DecodeRequest request;
  request.mutable_sampling()->set_max_tokens(flags.max_tokens);
  request.mutable_sampling()->set_temperature(flags.temperature);
  request.mutable_sampling()->set_top_p(flags.top_p);
  request.mutable_sampling()->set_seed(flags.seed);
  return request;
}

nlohmann::ordered_json ToJson(const Generation& generation) {
  const v1::PrefillStats& prefill = generation.prefill.stats();
  const v1::DecodeStats& decode = generation.decode;
  return {
      {"text", generation.text},
      {"prompt_token_ids", generation.prefill.ticket().token_ids()},
      {"token_ids", generation.token_ids},
      {"prefill",
       {{"prompt_tokens", prefill.prompt_tokens()},
        {"cached_tokens", prefill.cached_tokens()},
        {"lookup_seconds", prefill.lookup_seconds()},
        {"fetch_seconds", prefill.fetch_seconds()},
        {"compute_seconds", prefill.compute_seconds()},
        {"encode_seconds", prefill.encode_seconds()},
        {"put_seconds", prefill.put_seconds()},
        {"put_bytes", prefill.put_bytes()},
        {"fetched_bytes", prefill.fetched_bytes()},
        {"logical_bytes", prefill.logical_bytes()},
        {"cache_bytes", prefill.cache_bytes()},
        {"table_bytes", prefill.table_bytes()},
        {"window_bytes", prefill.window_bytes()},
        {"stored", prefill.stored()},
        {"store_error", prefill.store_error()}}},
      {"decode",
       {{"fetch_seconds", decode.fetch_seconds()},
        {"first_layer_seconds", decode.first_layer_seconds()},
        {"first_token_seconds", decode.first_token_seconds()},
        {"decode_seconds", decode.decode_seconds()},
        {"fetched_bytes", decode.fetched_bytes()},
        {"recomputed_tokens", decode.recomputed_tokens()},
        {"recompute_reason", decode.recompute_reason()},
        {"flushed_blocks", decode.flushed_blocks()},
        {"put_back_blocks", decode.put_back_blocks()},
        {"queue_seconds", decode.queue_seconds()},
        {"resident_blocks", decode.resident_blocks()}}},
  };
}

absl::StatusOr<Generation> GenerateLocally(ModelHost& host, const v1::Prompt& prompt,
                                           const GenerationFlags& flags,
                                           const std::function<void(const std::string&)>& on_text) {
  PKV_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, host.ResolvePrompt(prompt));
  PKV_ASSIGN_OR_RETURN(const CodecParams fp16, PresetByName("fp16", host.config().kv_shape()));
  PKV_ASSIGN_OR_RETURN(const std::unique_ptr<KvSequence> sequence, host.MakeSequence(fp16));
  PKV_ASSIGN_OR_RETURN(Sampler sampler,
                       Sampler::Make({flags.temperature, flags.top_p, flags.seed}));
  Generation generation;
  generation.prefill.mutable_ticket()->mutable_token_ids()->Add(tokens.begin(), tokens.end());
  const Stopwatch prefill_stopwatch;
  PKV_RETURN_IF_ERROR(
      ComputePrefill(host, *sequence, std::span(tokens).first(tokens.size() - 1), nullptr));
  generation.prefill.mutable_stats()->set_prompt_tokens(static_cast<uint32_t>(tokens.size()));
  generation.prefill.mutable_stats()->set_compute_seconds(prefill_stopwatch.Seconds());
  const size_t room = host.config().max_position_embeddings - tokens.size() + 1;
  const size_t max_tokens = std::min<size_t>(flags.max_tokens, room);
  std::vector<float> logits(host.config().vocab_size);
  StreamDecoder decoder(&host.tokenizer());
  const Stopwatch decode_stopwatch;
  while (generation.token_ids.size() < max_tokens) {
    const int64_t position = static_cast<int64_t>(tokens.size()) - 1;
    PKV_RETURN_IF_ERROR(
        host.Forward(std::span(tokens).last(1), position, *sequence, 0, logits.data()));
    PKV_ASSIGN_OR_RETURN(const SampledToken sampled, sampler.Sample(logits));
    tokens.push_back(sampled.token_id);
    generation.token_ids.push_back(sampled.token_id);
    PKV_ASSIGN_OR_RETURN(const std::string text, decoder.Add(sampled.token_id));
    generation.text += text;
    if (on_text) on_text(text);
    const std::vector<int32_t>& eos = host.config().eos_token_ids;
    if (std::find(eos.begin(), eos.end(), sampled.token_id) != eos.end()) break;
  }
  generation.decode.set_decode_seconds(decode_stopwatch.Seconds());
  return generation;
}

}  // namespace pkv
