#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "worker/ctl/commands.h"
#include "worker/ctl/generation_flags.h"
#include "worker/ctl/output.h"

namespace pkv {
namespace {

struct GenerateFlags {
  GenerationFlags generation;
  std::string preset = "default";
  std::string model;  // with local
  bool local = false, put_back = false, ignore_cache = false, refuse_recompute = false;
};

void PrintStats(const Generation& generation) {
  const v1::PrefillStats& prefill = generation.prefill.stats();
  const v1::DecodeStats& decode = generation.decode;
  std::fprintf(stderr, "prompt %u tokens, %u from cache; prefill %.3f s\n", prefill.prompt_tokens(),
               prefill.cached_tokens(), prefill.compute_seconds());
  if (prefill.cache_bytes() > 0) {
    std::fprintf(
        stderr, "cache %s of %s as fp16; put %s\n", FormatBytes(prefill.cache_bytes()).c_str(),
        FormatBytes(prefill.logical_bytes()).c_str(), FormatBytes(prefill.put_bytes()).c_str());
  }
  if (!prefill.store_error().empty())
    std::fprintf(stderr, "not stored: %s\n", prefill.store_error().c_str());
  if (decode.recomputed_tokens() > 0) {
    std::fprintf(stderr, "%u tokens computed by the decode worker: %s\n",
                 decode.recomputed_tokens(), decode.recompute_reason().c_str());
  }
  const double rate =
      decode.decode_seconds() > 0
          ? static_cast<double>(generation.token_ids.size() - 1) / decode.decode_seconds()
          : 0;
  std::fprintf(stderr, "%zu tokens, first after %.3f s (fetch %.3f s), then %.1f tokens/s\n",
               generation.token_ids.size(), decode.first_token_seconds(), decode.fetch_seconds(),
               rate);
}

absl::StatusOr<Generation> Run(const GenerateFlags& flags, const GlobalFlags& global,
                               const std::function<void(const std::string&)>& on_text) {
  absl::StatusOr<v1::Prompt> prompt = ReadPrompt(flags.generation);
  if (!prompt.ok()) return prompt.status();
  if (flags.local) {
    absl::StatusOr<std::unique_ptr<ModelHost>> host = ModelHost::Load(flags.model, 2);
    if (!host.ok()) return host.status();
    return GenerateLocally(**host, *prompt, flags.generation, on_text);
  }
  WorkerClient client(global.prefill, global.decode, global.deadline);
  v1::PrefillRequest prefill;
  *prefill.mutable_prompt() = *std::move(prompt);
  prefill.set_preset(flags.preset);
  prefill.set_ignore_cache(flags.ignore_cache);
  v1::DecodeRequest decode = MakeDecodeRequest(flags.generation);
  decode.set_put_back(flags.put_back);
  decode.set_refuse_recompute(flags.refuse_recompute);
  return client.Generate(prefill, std::move(decode), on_text);
}

}  // namespace

void AddGenerateCommand(CLI::App& app, const GlobalFlags& global, int& exit_code) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* command =
      app.add_subcommand("generate", "continue a prompt through a prefill and a decode worker");
  AddGenerationFlags(*command, flags->generation);
  command
      ->add_option("--preset", flags->preset,
                   "how the cache is stored: fp16, kivi2, pkv4, pkv2, default, ...")
      ->capture_default_str();
  CLI::Option* model = command->add_option("--model", flags->model, "model directory, for --local");
  command->add_flag("--local", flags->local, "no service: this process, uncompressed fp16 cache")
      ->needs(model);
  command->add_flag("--put-back", flags->put_back, "store blocks of generated tokens");
  command->add_flag("--ignore-cache", flags->ignore_cache, "prefill computes everything");
  command->add_flag("--refuse-recompute", flags->refuse_recompute,
                    "fail when the cache does not deliver");
  command->callback([flags, &global, &exit_code] {
    const bool json = global.json();
    const absl::StatusOr<Generation> generation =
        Run(*flags, global, [json](const std::string& text) {
          if (json) return;
          std::fputs(text.c_str(), stdout);
          std::fflush(stdout);
        });
    if (!generation.ok()) {
      exit_code = Fail(generation.status());
      return;
    }
    if (json) {
      PrintJson(ToJson(*generation));
    } else {
      std::printf("\n");
      PrintStats(*generation);
    }
  });
}

}  // namespace pkv
