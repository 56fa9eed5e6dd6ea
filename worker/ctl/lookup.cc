#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "pkv/block/prefix_hash.h"
#include "pkv/client/cache_client.h"
#include "pkv/client/cache_cluster.h"
#include "proto/base/status_macros.h"
#include "worker/ctl/commands.h"
#include "worker/ctl/generation_flags.h"
#include "worker/ctl/output.h"

namespace pkv {
namespace {

struct LookupFlags {
  GenerationFlags generation;  // its prompt options
  std::string model;
  std::vector<std::string> presets = {"default"};
};

struct Found {
  std::string server;
  LookupResult result;
};

// Asks the server where the chain belongs; one that is away, as its first call shows, gives way to
// the next, as for workers.
absl::StatusOr<Found> LookUp(const GlobalFlags& global, std::span<const Digest> ids,
                             std::span<const Variant> variants) {
  ClientOptions options;
  options.address = global.cache;
  PKV_ASSIGN_OR_RETURN(const std::unique_ptr<CacheCluster> cluster, CacheCluster::Create(options));
  for (size_t left = cluster->servers().size();; --left) {
    CacheClient& client = cluster->ServerFor(ids, "");
    absl::StatusOr<LookupResult> result = client.Lookup(ids, variants);
    if (result.ok()) return Found{client.address(), *std::move(result)};
    if (!absl::IsUnavailable(result.status()) || left == 1) return result.status();
  }
}

absl::Status Run(const LookupFlags& flags, const GlobalFlags& global) {
  PKV_ASSIGN_OR_RETURN(const v1::Prompt text, ReadPrompt(flags.generation));
  PKV_ASSIGN_OR_RETURN(const std::unique_ptr<ModelHost> host, ModelHost::Load(flags.model, 1));
  std::vector<int32_t> tokens(text.token_ids().begin(), text.token_ids().end());
  if (tokens.empty()) {
    PKV_ASSIGN_OR_RETURN(tokens, host->tokenizer().Encode(text.text(), /*add_bos=*/true));
  }
  const std::vector<Digest> ids = PrefixIds(host->profile(), tokens);
  std::vector<Variant> variants;
  for (const std::string& preset : flags.presets) {
    PKV_ASSIGN_OR_RETURN(const CodecParams params, PresetByName(preset, host->config().kv_shape()));
    variants.push_back(params.variant());
  }
  PKV_ASSIGN_OR_RETURN(const Found answer, LookUp(global, ids, variants));
  const LookupResult& found = answer.result;
  std::vector<std::string> stored;
  for (int i = 0; i < found.num_blocks; ++i) stored.push_back(ids[i].ToHex());
  const std::string variant =
      found.num_blocks > 0 ? VariantText(variants[found.variant_index]) : "";
  if (global.json()) {
    PrintJson({{"server", answer.server},
               {"prompt_tokens", tokens.size()},
               {"blocks", ids.size()},
               {"stored_blocks", found.num_blocks},
               {"stored_tokens", found.num_blocks * kBlockTokens},
               {"variant", variant},
               {"bytes", found.bytes},
               {"ssd_bytes", found.ssd_bytes},
               {"block_ids", stored}});
  } else {
    const std::string on_disk =
        found.ssd_bytes == 0 ? "" : absl::StrCat(", ", FormatBytes(found.ssd_bytes), " on disk");
    std::printf("%d of %zu blocks stored (%d of %zu tokens) at %s %s %s%s\n", found.num_blocks,
                ids.size(), found.num_blocks * kBlockTokens, tokens.size(), answer.server.c_str(),
                variant.c_str(), FormatBytes(found.bytes).c_str(), on_disk.c_str());
    for (const std::string& id : stored) std::printf("%s\n", id.c_str());
  }
  if (found.num_blocks == 0)
    return absl::NotFoundError("no block of this prompt is stored in these variants");
  return absl::OkStatus();
}

}  // namespace

void AddLookupCommand(CLI::App& app, const GlobalFlags& global, int& exit_code) {
  auto flags = std::make_shared<LookupFlags>();
  CLI::App* command = app.add_subcommand("lookup", "how much of a prompt is stored");
  command->add_option("--model", flags->model, "model directory: tokenizer and identity")
      ->required();
  command->add_option("--prompt", flags->generation.prompt, "prompt text");
  command->add_option("--prompt-file", flags->generation.prompt_file, "file with the prompt text");
  command->add_option("--token-ids", flags->generation.token_ids, "prompt as token ids")
      ->delimiter(',');
  command
      ->add_option("--preset", flags->presets,
                   "acceptable presets, most wanted first, comma-separated")
      ->delimiter(',')
      ->capture_default_str();
  command->callback([flags, &global, &exit_code] {
    const absl::Status status = Run(*flags, global);
    if (!status.ok()) exit_code = Fail(status);
  });
}

}  // namespace pkv
