#include "tests/bench/decode_command.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "pkv/block/prefix_hash.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "tests/bench/random_model.h"
#include "tests/bench/sample_kv.h"
#include "worker/batch/cuda_batch_engine.h"
#include "worker/batch/cuda_pools.h"
#include "worker/sequence/object_place.h"

namespace pkv {
namespace {

using Clock = std::chrono::steady_clock;

struct DecodeOptions {
  std::string shape = "llama-3.1-8b";
  std::vector<std::string> presets = {"fp16", "default", "default4"};
  std::vector<int> batches = {8};
  int context = 32768;
  int steps = 50;
  double memory_share = 0.9;
};

// The frames of one layer of a sequence, for every layer: the engine copies each to a page of its
// own.
struct SampleFrames {
  std::vector<std::vector<std::byte>> blocks;  // by block, some the same
  std::vector<std::byte> table, window;
  std::vector<ObjectHeader> headers;  // table, if any, blocks, window
  int num_tables = 0, num_window_tokens = 0;
};

class SampleStream final : public GetStream {
 public:
  explicit SampleStream(const SampleFrames* frames) : frames_(*frames) {}

  absl::Status WaitForManifest() override { return absl::OkStatus(); }
  absl::Status WaitForLayer(int) override { return absl::OkStatus(); }
  absl::Status WaitForAll() override { return absl::OkStatus(); }
  int num_objects() const override { return static_cast<int>(frames_.headers.size()); }
  const ObjectHeader& header(int i) const override { return frames_.headers[i]; }
  std::span<const std::byte> frame(int i, int) const override {
    if (i < frames_.num_tables) return frames_.table;
    if (i + 1 == num_objects()) return frames_.window;
    return frames_.blocks[i - frames_.num_tables];
  }
  AlignedBuffer TakeObject(int) override { return {}; }
  absl::Status CheckHeld() override { return absl::OkStatus(); }
  uint64_t received_bytes() const override { return 0; }
  void Cancel() override {}

 private:
  const SampleFrames& frames_;
};

absl::StatusOr<SampleFrames> MakeFrames(const CudaModel& model, const CodecParams& params,
                                        int context) {
  const KvShape shape = model.config().kv_shape();
  const Digest profile = model.profile().ComputeDigest();
  constexpr int kSampleBlocks = 4;
  AttentionCase attention;
  attention.num_qo_heads = model.config().num_qo_heads;
  attention.num_kv_heads = shape.num_kv_heads;
  attention.head_dim = shape.head_dim;
  PKV_ASSIGN_OR_RETURN(
      const EncodedSample sample,
      EncodeSample(RandomSampleKv(attention, kSampleBlocks, nullptr), params.name, nullptr));
  SampleFrames frames;
  Digest table;
  if (params.encoding.has_patterns) {
    ObjectHeader header = HeaderOf(ObjectKind::kTable, shape, params, profile);
    header.num_patterns_k = static_cast<uint16_t>(sample.bank.num_k());
    header.num_patterns_v = static_cast<uint16_t>(sample.bank.num_v());
    header.id.bytes[0] = 1;
    table = header.id;
    frames.table.resize(PayloadLayout::Of(header).frame_bytes);
    PKV_RETURN_IF_ERROR(sample.bank.WriteTableFrame(frames.table));
    frames.headers.push_back(header);
    frames.num_tables = 1;
  }
  const int num_blocks = BlockTokensAfterPrefill(params, context) / kBlockTokens;
  frames.num_window_tokens = context - num_blocks * kBlockTokens;
  const std::vector<int32_t> tokens(kBlockTokens, 1);
  Digest parent;
  for (int i = 0; i < num_blocks; ++i) {
    PKV_ASSIGN_OR_RETURN(
        ObjectHeader header,
        BlockHeaderOf(shape, params, profile, uint64_t(i) * kBlockTokens, parent, tokens));
    parent = header.id;
    header.table = table;
    header.num_patterns_k = static_cast<uint16_t>(sample.bank.num_k());
    header.num_patterns_v = static_cast<uint16_t>(sample.bank.num_v());
    const auto& from = i == 0 && !sample.first.empty() ? sample.first : sample.rest;
    const auto& frame = from[i % from.size()].frame;
    frames.blocks.emplace_back(frame.data(), frame.data() + frame.size());
    frames.headers.push_back(header);
  }
  // Room for the steps, before the window is full.
  if (frames.num_window_tokens == 0) frames.num_window_tokens = kBlockTokens / 8;
  ObjectHeader header = HeaderOf(ObjectKind::kWindow, shape, params, profile);
  header.num_tokens = static_cast<uint16_t>(frames.num_window_tokens);
  header.first_token = uint64_t(num_blocks) * kBlockTokens;
  header.parent = parent;
  frames.window.resize(PayloadLayout::Of(header).frame_bytes);
  frames.headers.push_back(header);
  return frames;
}

double MedianMs(std::vector<double> seconds) {
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  return seconds[seconds.size() / 2] * 1e3;
}

struct Timing {
  double step_ms = 0, step_ms_max = 0, join_ms = 0;
};

// Attaches a sequence to every slot, then steps all of them.
absl::StatusOr<Timing> TimeSteps(BatchEngine& engine, const CodecParams& params,
                                 const SampleFrames& frames, int batch, int most_steps) {
  const int num_blocks = static_cast<int>(frames.blocks.size());
  std::vector<StepInput> inputs;
  std::vector<double> joins;
  for (int slot = 0; slot < batch; ++slot) {
    EnginePrefix prefix;
    prefix.stream = std::make_unique<SampleStream>(&frames);
    prefix.num_tables = frames.num_tables;
    prefix.num_window_tokens = frames.num_window_tokens;
    prefix.resident.resize(num_blocks);
    for (int i = 0; i < num_blocks; ++i) {
      prefix.pages.push_back(slot * (num_blocks + 1) + i);
      prefix.fetched.push_back(i);
    }
    PKV_RETURN_IF_ERROR(engine.Attach(slot, params, std::move(prefix)));
    StepOutput output;
    inputs.push_back({slot, 1 + slot, false});
    const Clock::time_point start = Clock::now();
    PKV_RETURN_IF_ERROR(engine.First(inputs.back(), nullptr, output));
    joins.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    PKV_RETURN_IF_ERROR(output.status);
  }
  std::vector<StepOutput> outputs(batch);
  std::vector<double> seconds;
  // Until the window is full: nothing is flushed here.
  const int steps =
      std::min(most_steps, CudaPools::WindowCapacity(params) - frames.num_window_tokens - 1);
  for (int i = 0; i < steps; ++i) {
    const Clock::time_point start = Clock::now();
    PKV_RETURN_IF_ERROR(engine.Step(inputs, outputs));
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    for (int slot = 0; slot < batch; ++slot) inputs[slot].token = outputs[slot].greedy_token;
  }
  // The first steps load kernels and capture the graph.
  seconds.erase(seconds.begin(), seconds.begin() + std::min<size_t>(4, seconds.size() - 1));
  return Timing{MedianMs(seconds), *std::max_element(seconds.begin(), seconds.end()) * 1e3,
                MedianMs(joins)};
}

// One preset: the largest number of sequences that fit, then steps at each batch.
absl::Status Measure(const CudaModel& model, const std::string& preset,
                     const DecodeOptions& options) {
  const KvShape shape = model.config().kv_shape();
  PKV_ASSIGN_OR_RETURN(const CodecParams params, PresetByName(preset, shape));
  PKV_ASSIGN_OR_RETURN(const SampleFrames frames, MakeFrames(model, params, options.context));
  const int num_blocks = static_cast<int>(frames.blocks.size());
  size_t free_bytes = 0, total_bytes = 0;
  cudaMemGetInfo(&free_bytes, &total_bytes);
  // Blocks of the context, one that the generated tokens fill, and a slot each.
  const int64_t sequence_bytes =
      (num_blocks + 1) * CudaPools::PageBytes(shape, params) + CudaPools::SlotBytes(shape, params);
  const int resident = static_cast<int>((options.memory_share * static_cast<double>(free_bytes)) /
                                        static_cast<double>(sequence_bytes));
  for (const int batch : options.batches) {
    if (batch > resident) {
      std::fprintf(stderr, "%s: %d sequences do not fit, %d do\n", preset.c_str(), batch, resident);
      continue;
    }
    CudaEngineOptions engine_options;
    engine_options.params = params;
    engine_options.num_slots = batch;
    engine_options.num_pages = batch * (num_blocks + 1);
    engine_options.num_joining = 1;
    PKV_ASSIGN_OR_RETURN(const std::unique_ptr<BatchEngine> engine,
                         MakeCudaBatchEngine(&model, engine_options));
    PKV_ASSIGN_OR_RETURN(const Timing timing,
                         TimeSteps(*engine, params, frames, batch, options.steps));
    const nlohmann::json row = {{"shape", options.shape},
                                {"preset", preset},
                                {"context", num_blocks * kBlockTokens + frames.num_window_tokens},
                                {"batch", batch},
                                {"step_ms", timing.step_ms},
                                {"step_ms_max", timing.step_ms_max},
                                {"tokens_per_s", batch / timing.step_ms * 1e3},
                                {"join_ms", timing.join_ms},
                                {"sequence_bytes", sequence_bytes},
                                {"sequences_that_fit", resident},
                                {"weight_bytes", model.weight_bytes()},
                                {"free_bytes", free_bytes}};
    std::printf("%s\n", row.dump().c_str());
    std::fflush(stdout);
  }
  return absl::OkStatus();
}

}  // namespace

void AddDecodeCommand(CLI::App& app, int& exit_code) {
  // Lives as long as the process: CLI11 writes into it.
  static DecodeOptions options;
  CLI::App* command = app.add_subcommand(
      "decode", "Decode steps of many sequences on one GPU, random weights, one JSON line a row");
  command->add_option("--shape", options.shape, "llama-3.1-8b, llama-3.2-1b or qwen2.5-7b");
  command->add_option("--preset", options.presets, "Presets, in order")->delimiter(',');
  command->add_option("--batch", options.batches, "Sequences of a step")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096));
  command->add_option("--context", options.context, "Cached tokens of each sequence")
      ->check(CLI::Range(256, 1 << 20));
  command->add_option("--steps", options.steps, "Steps timed")->check(CLI::Range(5, 1000));
  command
      ->add_option("--memory-share", options.memory_share,
                   "Of the memory that the weights leave, what sequences may take")
      ->check(CLI::Range(0.01, 1.0));
  command->callback([&exit_code] {
    // The tokens that are decoded fill at most a block.
    exit_code =
        BenchExitCode(MeasurePresets(options.shape, options.context + kBlockTokens, options.presets,
                                     [](const CudaModel& model, const std::string& preset) {
                                       return Measure(model, preset, options);
                                     }));
  });
}

}  // namespace pkv
