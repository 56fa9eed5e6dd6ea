#include "tests/bench/prefill_command.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "proto/base/status_macros.h"
#include "tests/bench/random_model.h"
#include "worker/engine/cuda/cuda_prefill.h"
#include "worker/prefill/layer_staging.h"

namespace pkv {
namespace {

struct PrefillOptions {
  std::string shape = "llama-3.1-8b";
  std::vector<std::string> presets = {"default"};
  int tokens = 32768;
  int chunk = 4096;
  int compression_sms = 4;
  int repeats = 3;
};

// Seconds of one pass. Compressed layers are copied to pinned memory, as a worker does, and left
// there.
absl::StatusOr<double> TimePass(CudaPrefill& prefill, const CodecParams& params,
                                std::span<const int32_t> tokens,
                                std::array<LayerStaging*, 2> staging) {
  PrefillRequest request;
  request.tokens = tokens;
  request.num_blocks =
      BlockTokensAfterPrefill(params, static_cast<int>(tokens.size())) / kBlockTokens;
  request.target = [&](int layer) -> absl::StatusOr<PrefillTarget> {
    LayerStaging& to = *staging[layer % 2];
    PKV_RETURN_IF_ERROR(to.WaitAndFill(true, {}));
    PrefillTarget target;
    target.pages = to.pages();
    target.page_stride = to.page_stride();
    target.sinks = to.sinks();
    PKV_ASSIGN_OR_RETURN(target.bank, to.PrepareBank(nullptr, nullptr));
    target.mine = params.encoding.has_patterns;
    return target;
  };
  request.on_compressed = [&](int layer, const PrefillTarget&, const KvTensorView& window,
                              void* stream) {
    return staging[layer % 2]->StartCopy(request.num_blocks, window, stream);
  };
  const auto start = std::chrono::steady_clock::now();
  PKV_RETURN_IF_ERROR(prefill.Run(request));
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

absl::Status Measure(const CudaModel& model, const std::string& preset,
                     const PrefillOptions& options) {
  const KvShape shape = model.config().kv_shape();
  PKV_ASSIGN_OR_RETURN(const CodecParams params, PresetByName(preset, shape));
  std::vector<int32_t> tokens(options.tokens);
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<int32_t>(i * 7919 % model.config().vocab_size);
  }
  const int max_tokens = (options.tokens + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
  std::array<std::unique_ptr<CudaPrefill>, 2> passes;
  for (const bool compress : {false, true}) {
    PKV_ASSIGN_OR_RETURN(passes[compress],
                         CudaPrefill::Make(&model, params,
                                           {.max_tokens = max_tokens,
                                            .chunk_tokens = options.chunk,
                                            .compress = compress,
                                            .compression_sms = options.compression_sms}));
  }
  PKV_ASSIGN_OR_RETURN(
      LayerStaging even,
      LayerStaging::Make(shape, params, max_tokens / kBlockTokens, passes[1]->stream()));
  PKV_ASSIGN_OR_RETURN(
      LayerStaging odd,
      LayerStaging::Make(shape, params, max_tokens / kBlockTokens, passes[1]->stream()));
  std::array<std::vector<double>, 2> seconds;
  // One after the other, so that the device's clock treats both alike; the first round warms up.
  for (int i = 0; i <= options.repeats; ++i) {
    for (const bool compress : {false, true}) {
      PKV_ASSIGN_OR_RETURN(const double taken,
                           TimePass(*passes[compress], params, tokens, {&even, &odd}));
      if (i > 0) seconds[compress].push_back(taken);
    }
  }
  for (std::vector<double>& values : seconds) std::sort(values.begin(), values.end());
  const double without = seconds[0][seconds[0].size() / 2],
               with = seconds[1][seconds[1].size() / 2];
  const nlohmann::json row = {{"shape", options.shape},
                              {"preset", preset},
                              {"tokens", options.tokens},
                              {"chunk", options.chunk},
                              {"compression_sms", passes[1]->compression_sms()},
                              {"without_ms", without * 1e3},
                              {"with_ms", with * 1e3},
                              {"compression_share", with / without - 1},
                              {"tokens_per_s", options.tokens / with}};
  std::printf("%s\n", row.dump().c_str());
  std::fflush(stdout);
  return absl::OkStatus();
}

}  // namespace

void AddPrefillCommand(CLI::App& app, int& exit_code) {
  // Lives as long as the process: CLI11 writes into it.
  static PrefillOptions options;
  CLI::App* command = app.add_subcommand(
      "prefill", "A prefill pass on one GPU with and without compression, one JSON line a row");
  command->add_option("--shape", options.shape, "llama-3.1-8b, llama-3.2-1b or qwen2.5-7b");
  command->add_option("--preset", options.presets, "Presets, in order")->delimiter(',');
  command->add_option("--tokens", options.tokens, "Tokens of the prompt")
      ->check(CLI::Range(128, 1 << 20));
  command->add_option("--chunk", options.chunk, "Tokens computed at a time in a layer")
      ->check(CLI::Range(1, 65535));
  command
      ->add_option("--compression-sms", options.compression_sms,
                   "Multiprocessors that compress while the others compute; 0: all do both")
      ->check(CLI::Range(0, 64));
  command->add_option("--repeats", options.repeats, "Passes timed, the median is printed")
      ->check(CLI::Range(1, 100));
  command->callback([&exit_code] {
    exit_code = BenchExitCode(MeasurePresets(options.shape, options.tokens, options.presets,
                                             [](const CudaModel& model, const std::string& preset) {
                                               return Measure(model, preset, options);
                                             }));
  });
}

}  // namespace pkv
