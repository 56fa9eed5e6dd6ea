#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/base/status_macros.h"
#include "worker/batch/pool_layout.h"
#include "worker/ctl/commands.h"
#include "worker/ctl/output.h"
#include "worker/engine/model_config.h"
#include "worker/engine/model_shapes.h"
#include "worker/sequence/cache_sizes.h"

namespace pkv {
namespace {

constexpr double kGibibyte = 1 << 30;

struct CapacityFlags {
  std::string shape, model;
  std::vector<std::string> presets = {"fp16", "kivi2", "pkv2", "default", "pkv4", "default4"};
  int tokens = 32768;
  double store_gib = 64;
  double pool_gib = 64;
  double link_gbit_per_s = 100;
};

// One preset's row.
struct Row {
  std::string preset;
  CacheSizes sizes;
  double bits_per_element = 0;  // all in
  int64_t store_tokens = 0;     // in blocks, those of many requests
  int64_t store_requests = 0;   // that share no prefix
  double handoff_seconds = 0;   // at the link's full rate
  uint64_t sequence_bytes = 0;  // of a decode worker's GPU memory
  int64_t pool_sequences = 0;
};

int64_t HowMany(double gib, uint64_t each_bytes) {
  return static_cast<int64_t>(gib * kGibibyte / static_cast<double>(each_bytes));
}

// K and V of one token.
int64_t TokenElements(const KvShape& shape) {
  return int64_t{2} * shape.num_layers * shape.num_kv_heads * shape.head_dim;
}

absl::StatusOr<Row> MakeRow(const KvShape& shape, const std::string& preset,
                            const CapacityFlags& flags) {
  PKV_ASSIGN_OR_RETURN(const CodecParams params, PresetByName(preset, shape));
  Row row;
  row.preset = preset;
  PKV_ASSIGN_OR_RETURN(row.sizes, SizesAfterPrefill(shape, params, flags.tokens));
  row.bits_per_element = 8.0 * static_cast<double>(row.sizes.total_bytes()) / flags.tokens /
                         static_cast<double>(TokenElements(shape));
  row.store_tokens = HowMany(flags.store_gib, StoredBytes(row.sizes.block_bytes)) * kBlockTokens;
  row.store_requests = HowMany(flags.store_gib, row.sizes.stored_bytes);
  row.handoff_seconds =
      8.0 * static_cast<double>(row.sizes.total_bytes()) / (flags.link_gbit_per_s * 1e9);
  const PoolLayout pool = PoolLayout::Of(shape, params);
  const int64_t num_pages = (flags.tokens + kBlockTokens - 1) / kBlockTokens;
  row.sequence_bytes =
      static_cast<uint64_t>(num_pages * pool.PageBytes(shape) + pool.SlotBytes(shape));
  row.pool_sequences = HowMany(flags.pool_gib, row.sequence_bytes);
  return row;
}

nlohmann::ordered_json ToJson(const Row& row) {
  const CacheSizes& sizes = row.sizes;
  return {{"preset", row.preset},
          {"block_bytes", sizes.block_bytes},
          {"bytes_per_token", static_cast<double>(sizes.block_bytes) / kBlockTokens},
          {"request",
           {{"tokens", sizes.num_tokens},
            {"blocks", sizes.num_blocks},
            {"window_tokens", sizes.window_tokens},
            {"blocks_bytes", sizes.blocks_bytes},
            {"table_bytes", sizes.table_bytes},
            {"window_bytes", sizes.window_bytes},
            {"bytes", sizes.total_bytes()},
            {"stored_bytes", sizes.stored_bytes},
            {"bits_per_element", row.bits_per_element}}},
          {"pkvd", {{"tokens", row.store_tokens}, {"requests", row.store_requests}}},
          {"handoff_seconds", row.handoff_seconds},
          {"decode", {{"sequence_bytes", row.sequence_bytes}, {"sequences", row.pool_sequences}}}};
}

std::string Thousands(int64_t value) {
  std::string digits = absl::StrCat(value);
  for (int at = static_cast<int>(digits.size()) - 3; at > 0; at -= 3) {
    digits.insert(static_cast<size_t>(at), 1, ',');
  }
  return digits;
}

void PrintTable(const std::string& name, const KvShape& shape, const std::vector<Row>& rows,
                const CapacityFlags& flags) {
  std::printf("%s: %d layers, %d kv heads of %d; fp16 K and V: %s bytes a token\n", name.c_str(),
              shape.num_layers, shape.num_kv_heads, shape.head_dim,
              Thousands(2 * TokenElements(shape)).c_str());
  std::printf("requests of %s tokens, pkvd of %g GiB, link of %g Gbit/s, %g GiB of GPU for pools\n",
              Thousands(flags.tokens).c_str(), flags.store_gib, flags.link_gbit_per_s,
              flags.pool_gib);
  std::printf("\n%-9s %10s %10s %10s %6s %12s %9s %9s %10s\n", "", "bytes a", "", "", "bits",
              "pkvd:", "", "hand-off", "GPU: one");
  std::printf("%-9s %10s %10s %10s %6s %12s %9s %9s %10s %9s\n", "preset", "token", "block",
              "request", "all in", "tokens", "requests", "ms", "sequence", "sequences");
  for (const Row& row : rows) {
    std::printf("%-9s %10s %10s %10s %6.2f %12s %9s %9.1f %10s %9s\n", row.preset.c_str(),
                Thousands(static_cast<int64_t>(row.sizes.block_bytes / kBlockTokens)).c_str(),
                FormatBytes(row.sizes.block_bytes).c_str(),
                FormatBytes(row.sizes.total_bytes()).c_str(), row.bits_per_element,
                Thousands(row.store_tokens).c_str(), Thousands(row.store_requests).c_str(),
                row.handoff_seconds * 1e3, FormatBytes(row.sequence_bytes).c_str(),
                Thousands(row.pool_sequences).c_str());
  }
}

absl::Status Run(const CapacityFlags& flags, const GlobalFlags& global) {
  if (flags.shape.empty() == flags.model.empty()) {
    return absl::InvalidArgumentError("give one of --shape and --model");
  }
  PKV_ASSIGN_OR_RETURN(const ModelConfig config, flags.shape.empty()
                                                     ? ReadModelConfig(flags.model)
                                                     : ModelShapeByName(flags.shape));
  const KvShape shape = config.kv_shape();
  std::vector<Row> rows;
  for (const std::string& preset : flags.presets) {
    PKV_ASSIGN_OR_RETURN(Row row, MakeRow(shape, preset, flags));
    rows.push_back(std::move(row));
  }
  const std::string& name = flags.shape.empty() ? flags.model : flags.shape;
  if (!global.json()) {
    PrintTable(name, shape, rows, flags);
    return absl::OkStatus();
  }
  nlohmann::ordered_json document = {{"model", name},
                                     {"layers", shape.num_layers},
                                     {"kv_heads", shape.num_kv_heads},
                                     {"head_dim", shape.head_dim},
                                     {"fp16_bytes_per_token", 2 * TokenElements(shape)},
                                     {"pkvd_gib", flags.store_gib},
                                     {"pool_gib", flags.pool_gib},
                                     {"link_gbit_per_s", flags.link_gbit_per_s}};
  for (const Row& row : rows) document["presets"].push_back(ToJson(row));
  PrintJson(document);
  return absl::OkStatus();
}

}  // namespace

void AddCapacityCommand(CLI::App& app, const GlobalFlags& global, int& exit_code) {
  auto flags = std::make_shared<CapacityFlags>();
  CLI::App* command = app.add_subcommand(
      "capacity", "what a model's cache takes; asks no server (deploy/CAPACITY.md)");
  command->add_option("--shape", flags->shape,
                      absl::StrCat("a model by name: ", absl::StrJoin(ModelShapeNames(), ", ")));
  command->add_option("--model", flags->model, "a model directory: its config.json is read");
  command->add_option("--preset", flags->presets, "presets, comma-separated")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--tokens", flags->tokens, "of one request")->capture_default_str();
  command->add_option("--pkvd", flags->store_gib, "GiB of one pkvd's --capacity")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--pool", flags->pool_gib, "GiB of a decode GPU left for pages and windows")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--link", flags->link_gbit_per_s, "Gbit/s between pkvd and a worker")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->callback([flags, &global, &exit_code] {
    const absl::Status status = Run(*flags, global);
    if (!status.ok()) exit_code = Fail(status);
  });
}

}  // namespace pkv
