#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"
#include "worker/ctl/commands.h"
#include "worker/ctl/generation_flags.h"
#include "worker/ctl/output.h"

namespace pkv {
namespace {

struct CompareFlags {
  GenerationFlags generation;
  std::string model;
  std::vector<std::string> presets = {"fp16", "kivi2", "pkv2", "default", "pkv4", "default4"};
  int prompt_tokens = 0;
  int second_shares = 0;  // 0: three quarters of the prompt
};

// One preset: a cold request, then one that shares its beginning.
struct Row {
  std::string preset;
  Generation first, second;
  int equal_tokens = 0;  // of the first continuation, from its start, equal to the uncompressed one
  int agreeing_tokens = 0;  // at the same place, anywhere
};

int EqualFromStart(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  const size_t count = std::min(a.size(), b.size());
  size_t i = 0;
  while (i < count && a[i] == b[i]) ++i;
  return static_cast<int>(i);
}

int EqualAnywhere(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  int equal = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) equal += a[i] == b[i] ? 1 : 0;
  return equal;
}

double BitsAllIn(const v1::PrefillStats& stats) {
  return stats.logical_bytes() == 0
             ? 0
             : 16.0 * double(stats.cache_bytes()) / double(stats.logical_bytes());
}

double PercentOfFp16(uint64_t bytes, const v1::PrefillStats& stats) {
  return stats.logical_bytes() == 0 ? 0 : 100.0 * double(bytes) / double(stats.logical_bytes());
}

v1::Prompt TokenPrompt(std::span<const int32_t> tokens) {
  v1::Prompt prompt;
  prompt.mutable_token_ids()->Add(tokens.begin(), tokens.end());
  return prompt;
}

// The prompt's first tokens, then its beginning again in place of its end: a request that shares a
// prefix and then differs.
std::vector<int32_t> SecondPrompt(const std::vector<int32_t>& tokens, int shared) {
  std::vector<int32_t> second(tokens.begin(), tokens.begin() + shared);
  const size_t rest = std::min<size_t>(tokens.size() - shared, shared > 1 ? shared - 1 : 0);
  second.insert(second.end(), tokens.begin() + 1, tokens.begin() + 1 + rest);
  return second;
}

void PrintHeader(const std::vector<int32_t>& tokens, const Generation& local) {
  std::printf(
      "prompt: %zu tokens; uncompressed single process: prefill %.2f s, %zu tokens in %.2f s\n\n",
      tokens.size(), local.prefill.stats().compute_seconds(), local.token_ids.size(),
      local.decode.decode_seconds());
  std::printf("%-9s %9s %9s %10s %7s %9s %9s %9s %8s | %8s %9s %9s\n", "preset", "prefill", "fetch",
              "shipped", "of fp16", "bits all", "same from", "same", "tok/s", "2nd req.", "from",
              "prefill");
  std::printf("%-9s %9s %9s %10s %7s %9s %9s %9s %8s | %8s %9s %9s\n", "", "s", "s", "", "%",
              "in /elt", "start", "anywhere", "", "tokens", "cache", "s");
}

void PrintRow(const Row& row) {
  const v1::PrefillStats& first = row.first.prefill.stats();
  const v1::PrefillStats& second = row.second.prefill.stats();
  const v1::DecodeStats& decode = row.first.decode;
  const size_t generated = row.first.token_ids.size();
  const double rate =
      decode.decode_seconds() > 0 ? double(generated - 1) / decode.decode_seconds() : 0;
  std::printf("%-9s %9.2f %9.3f %10s %7.1f %9.2f %5d/%-3zu %5d/%-3zu %8.1f | %8u %9u %9.2f\n",
              row.preset.c_str(), first.compute_seconds(), decode.fetch_seconds(),
              FormatBytes(decode.fetched_bytes()).c_str(),
              PercentOfFp16(decode.fetched_bytes(), first), BitsAllIn(first), row.equal_tokens,
              generated, row.agreeing_tokens, generated, rate, second.prompt_tokens(),
              second.cached_tokens(), second.compute_seconds());
  std::fflush(stdout);
  if (decode.recomputed_tokens() > 0) {
    std::printf("          decode computed the prompt: %s\n", decode.recompute_reason().c_str());
  }
}

nlohmann::ordered_json ToJson(const Row& row) {
  return {{"preset", row.preset},
          {"bits_all_in", BitsAllIn(row.first.prefill.stats())},
          {"equal_from_start", row.equal_tokens},
          {"equal_anywhere", row.agreeing_tokens},
          {"first", pkv::ToJson(row.first)},
          {"second", pkv::ToJson(row.second)}};
}

absl::Status Run(const CompareFlags& flags, const GlobalFlags& global) {
  PKV_ASSIGN_OR_RETURN(const v1::Prompt text, ReadPrompt(flags.generation));
  PKV_ASSIGN_OR_RETURN(const std::unique_ptr<ModelHost> host, ModelHost::Load(flags.model, 2));
  std::vector<int32_t> tokens(text.token_ids().begin(), text.token_ids().end());
  if (tokens.empty()) {
    PKV_ASSIGN_OR_RETURN(tokens, host->tokenizer().Encode(text.text(), /*add_bos=*/true));
  }
  if (flags.prompt_tokens > 0 && static_cast<size_t>(flags.prompt_tokens) < tokens.size()) {
    tokens.resize(flags.prompt_tokens);
  }
  const int shared = flags.second_shares > 0
                         ? std::min<int>(flags.second_shares, static_cast<int>(tokens.size()))
                         : static_cast<int>(tokens.size() - tokens.size() / 4);
  const std::vector<int32_t> second_tokens = SecondPrompt(tokens, shared);
  PKV_ASSIGN_OR_RETURN(const Generation local,
                       GenerateLocally(*host, TokenPrompt(tokens), flags.generation, nullptr));
  if (!global.json()) PrintHeader(tokens, local);

  WorkerClient client(global.prefill, global.decode, global.deadline);
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const std::string& preset : flags.presets) {
    Row row;
    row.preset = preset;
    v1::PrefillRequest prefill;
    prefill.set_preset(preset);
    prefill.set_ignore_cache(true);
    *prefill.mutable_prompt() = TokenPrompt(tokens);
    v1::DecodeRequest decode = MakeDecodeRequest(flags.generation);
    PKV_ASSIGN_OR_RETURN(row.first, client.Generate(prefill, decode, nullptr));
    prefill.set_ignore_cache(false);
    *prefill.mutable_prompt() = TokenPrompt(second_tokens);
    decode.mutable_sampling()->set_max_tokens(std::min(flags.generation.max_tokens, 16u));
    PKV_ASSIGN_OR_RETURN(row.second, client.Generate(prefill, decode, nullptr));
    row.equal_tokens = EqualFromStart(local.token_ids, row.first.token_ids);
    row.agreeing_tokens = EqualAnywhere(local.token_ids, row.first.token_ids);
    if (global.json()) {
      rows.push_back(ToJson(row));
    } else {
      PrintRow(row);
    }
  }
  if (global.json()) {
    PrintJson({{"prompt_tokens", tokens.size()},
               {"uncompressed", pkv::ToJson(local)},
               {"presets", rows}});
  }
  return absl::OkStatus();
}

}  // namespace

void AddCompareCommand(CLI::App& app, const GlobalFlags& global, int& exit_code) {
  auto flags = std::make_shared<CompareFlags>();
  CLI::App* command = app.add_subcommand(
      "compare", "run one prompt with several presets and compare with the uncompressed model");
  AddGenerationFlags(*command, flags->generation);
  command->add_option("--model", flags->model, "model directory, for the uncompressed run")
      ->required();
  command->add_option("--presets", flags->presets, "comma-separated")
      ->delimiter(',')
      ->capture_default_str();
  command
      ->add_option("--prompt-tokens", flags->prompt_tokens,
                   "use the first ones of the prompt; 0: all")
      ->check(CLI::NonNegativeNumber);
  command
      ->add_option("--second-shares", flags->second_shares,
                   "prompt tokens that the second request shares; 0: three quarters")
      ->check(CLI::NonNegativeNumber);
  command->callback([flags, &global, &exit_code] {
    const absl::Status status = Run(*flags, global);
    if (!status.ok()) exit_code = Fail(status);
  });
}

}  // namespace pkv
