#include "tests/bench/report.h"

#include <algorithm>
#include <cmath>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace pkv {
namespace {

using Json = nlohmann::ordered_json;

// JSON has no NaN: a number that is none becomes null, which no reader takes for a small error.
Json Number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

Json ToJson(const SampleSummary& summary) {
  return {{"count", summary.count},
          {"min", summary.min},
          {"median", summary.median},
          {"max", summary.max},
          {"spread", summary.spread()}};
}

Json ToJson(const LaunchBytes& bytes) {
  return {{"own", bytes.own()},   {"blocks", bytes.blocks}, {"windows", bytes.windows},
          {"sinks", bytes.sinks}, {"banks", bytes.banks},   {"queries", bytes.queries}};
}

Json ToJson(const DeviceInfo& device) {
  return {{"name", device.name},
          {"num_sms", device.num_sms},
          {"l2_bytes", device.l2_bytes},
          {"memory_bytes", device.memory_bytes},
          {"sm_clock_khz", device.sm_clock_khz},
          {"memory_clock_khz", device.memory_clock_khz},
          {"driver_version", device.driver_version},
          {"runtime_version", device.runtime_version}};
}

Json ToJson(const AttentionRow& row) {
  Json json = {{"case", row.attention_case.Name()},
               {"shape", ToJson(row.attention_case)},
               {"preset", row.preset},
               {"data", row.data},
               {"us", ToJson(row.us)},
               {"bytes", ToJson(row.bytes)},
               {"operations", row.operations},
               {"bytes_per_s", Number(row.bytes_per_s())},
               {"operations_per_s", Number(row.operations_per_s())},
               {"relative_error", Number(row.relative_error)},
               {"copies", row.copies},
               {"launches", row.launches},
               {"graph", row.graph}};
  if (const std::string fault = row.Fault(); !fault.empty()) json["fault"] = fault;
  return json;
}

Json ToJson(const CompressionRow& row) {
  Json json = {{"preset", row.preset},
               {"data", row.data},
               {"stage", row.stage},
               {"num_tokens", row.num_tokens},
               {"num_kv_heads", row.num_kv_heads},
               {"head_dim", row.head_dim},
               {"moved_bytes", row.moved_bytes},
               {"bytes_per_s", Number(row.bytes_per_s())},
               {"graph", row.graph},
               {"us", ToJson(row.us)}};
  if (const std::string fault = row.Fault(); !fault.empty()) json["fault"] = fault;
  return json;
}

Json ToJson(const PrefillRow& row) {
  return {{"what", row.what},
          {"num_queries", row.num_queries},
          {"num_tokens", row.num_tokens},
          {"num_qo_heads", row.num_qo_heads},
          {"num_kv_heads", row.num_kv_heads},
          {"head_dim", row.head_dim},
          {"operations", row.operations},
          {"operations_per_s", Number(row.operations_per_s())},
          {"graph", row.graph},
          {"us", ToJson(row.us)}};
}

Json ToJson(const CpuRow& row) {
  return {{"preset", row.preset},
          {"data", row.data},
          {"what", row.what},
          {"heads_per_kv", row.heads_per_kv},
          {"bytes", row.bytes},
          {"seconds", ToJson(row.seconds)},
          {"best_bytes_per_s", Number(row.best_bytes_per_s())},
          {"median_bytes_per_s", Number(row.median_bytes_per_s())}};
}

template <typename Row>
Json ToJsonArray(const std::vector<Row>& rows) {
  Json array = Json::array();
  for (const Row& row : rows) array.push_back(ToJson(row));
  return array;
}

const Peer* FindPeer(const Peers& peers, const AttentionCase& attention_case) {
  const auto found = peers.find(attention_case.Name());
  return found == peers.end() ? nullptr : &found->second;
}

std::string AttentionText(const BenchReport& report) {
  std::string text =
      absl::StrFormat("%-24s %-9s %-7s %9s %9s %7s %6s %6s %7s %9s\n", "attention", "preset",
                      "data", "us", "min", "spread", "TB/s", "% read", "x peer", "error");
  for (const AttentionRow& row : report.attention) {
    const Peer* peer = FindPeer(report.peers, row.attention_case);
    const std::string ratio =
        peer == nullptr ? "-" : absl::StrFormat("%.2f", peer->us / row.us.median);
    const std::string share =
        report.ceilings.has_value()
            ? absl::StrFormat("%.1f", 100 * row.bytes_per_s() / report.ceilings->read_bytes_per_s)
            : "-";
    absl::StrAppendFormat(&text, "%-24s %-9s %-7s %9.2f %9.2f %6.1f%% %6.3f %6s %7s %9.2e%s\n",
                          row.attention_case.Name(), row.preset, row.data, row.us.median,
                          row.us.min, 100 * row.us.spread(), row.bytes_per_s() / 1e12, share, ratio,
                          row.relative_error, row.graph ? "" : "  (no graph)");
  }
  return text;
}

std::string CompressionText(const BenchReport& report) {
  std::string text = absl::StrFormat("%-10s %-7s %-22s %10s %10s %7s %8s %6s\n", "compress", "data",
                                     "stage", "us", "min", "spread", "TB/s", "% copy");
  for (const CompressionRow& row : report.compression) {
    const std::string share =
        report.ceilings.has_value()
            ? absl::StrFormat("%.1f", 100 * row.bytes_per_s() / report.ceilings->copy_bytes_per_s)
            : "-";
    absl::StrAppendFormat(&text, "%-10s %-7s %-22s %10.2f %10.2f %6.1f%% %8.3f %6s%s\n", row.preset,
                          row.data, row.stage, row.us.median, row.us.min, 100 * row.us.spread(),
                          row.bytes_per_s() / 1e12, share, row.graph ? "" : "  (no graph)");
  }
  return text;
}

std::string PrefillText(const BenchReport& report) {
  std::string text =
      absl::StrFormat("%-12s %8s %8s %5s %5s %5s %10s %10s %7s %8s\n", "prefill", "queries",
                      "tokens", "qo", "kv", "dim", "us", "min", "spread", "TFLOP/s");
  for (const PrefillRow& row : report.prefill) {
    absl::StrAppendFormat(&text, "%-12s %8d %8d %5d %5d %5d %10.2f %10.2f %6.1f%% %8.1f%s\n",
                          row.what, row.num_queries, row.num_tokens, row.num_qo_heads,
                          row.num_kv_heads, row.head_dim, row.us.median, row.us.min,
                          100 * row.us.spread(), row.operations_per_s() / 1e12,
                          row.graph ? "" : "  (no graph)");
  }
  return text;
}

std::string CpuText(const BenchReport& report) {
  std::string text = absl::StrFormat("%-10s %-7s %-22s %5s %10s %10s %7s\n", "one core", "data",
                                     "what", "heads", "best GB/s", "median", "spread");
  for (const CpuRow& row : report.cpu) {
    absl::StrAppendFormat(
        &text, "%-10s %-7s %-22s %5s %10.3f %10.3f %6.1f%%\n", row.preset, row.data, row.what,
        row.heads_per_kv > 0 ? absl::StrCat(row.heads_per_kv) : "-", row.best_bytes_per_s() / 1e9,
        row.median_bytes_per_s() / 1e9, 100 * row.seconds.spread());
  }
  return text;
}

std::string TimeFault(const SampleSummary& us, int64_t bytes) {
  const double least_us = static_cast<double>(bytes) / kImpossibleBytesPerSecond * 1e6;
  if (us.min >= least_us) return "";
  return absl::StrFormat("%.2f us for %d bytes: no memory is that quick, the benchmark is lying",
                         us.min, bytes);
}

}  // namespace

std::string AttentionRow::Fault() const {
  if (std::string fault = TimeFault(us, bytes.own()); !fault.empty()) return fault;
  if (!(relative_error <= kWrongRelativeError)) {
    return absl::StrFormat("relative error %.3g above %g: the result is wrong", relative_error,
                           kWrongRelativeError);
  }
  return "";
}

std::string CompressionRow::Fault() const {
  if (wrong_pages == 0) return TimeFault(us, moved_bytes);
  return absl::StrCat(wrong_pages, " pages differ from the CPU's: the result is wrong");
}

absl::StatusOr<Peers> ReadPeers(const std::string& path) {
  std::ifstream file(path);
  const Json json = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  const absl::Status malformed = absl::InvalidArgumentError(
      absl::StrCat(path, " is no JSON object of {\"CASE\": {\"name\": TEXT, \"us\": NUMBER}}"));
  if (!json.is_object()) return malformed;
  Peers peers;
  for (const auto& [name, entry] : json.items()) {
    if (!entry.is_object() || !entry.contains("name") || !entry["name"].is_string() ||
        !entry.contains("us") || !entry["us"].is_number()) {
      return malformed;
    }
    peers[name] = {entry["name"].get<std::string>(), entry["us"].get<double>()};
  }
  return peers;
}

absl::Status BenchReport::CheckPlausible() const {
  std::vector<std::string> faults;
  for (const AttentionRow& row : attention) {
    if (const std::string fault = row.Fault(); !fault.empty()) {
      faults.push_back(
          absl::StrCat(row.attention_case.Name(), " ", row.preset, " ", row.data, ": ", fault));
    }
  }
  for (const CompressionRow& row : compression) {
    if (const std::string fault = row.Fault(); !fault.empty()) {
      faults.push_back(absl::StrCat(row.preset, " ", row.stage, ": ", fault));
    }
  }
  if (faults.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrJoin(faults, "\n"));
}

Json ToJson(const AttentionCase& attention_case) {
  return {{"batch", attention_case.batch},
          {"context_tokens", attention_case.context_tokens},
          {"mixed", attention_case.mixed},
          {"num_qo_heads", attention_case.num_qo_heads},
          {"num_kv_heads", attention_case.num_kv_heads},
          {"head_dim", attention_case.head_dim}};
}

Json ToJson(const BenchReport& report) {
  Json json = {
      {"version", PKV_VERSION}, {"command_line", report.command_line}, {"data", report.data}};
  if (report.device.has_value()) json["device"] = ToJson(*report.device);
  if (report.ceilings.has_value()) {
    json["ceilings"] = {{"read_bytes_per_s", report.ceilings->read_bytes_per_s},
                        {"read_by", report.ceilings->read_by},
                        {"copy_bytes_per_s", report.ceilings->copy_bytes_per_s},
                        {"copy_by", report.ceilings->copy_by}};
  }
  for (const auto& [name, peer] : report.peers) {
    json["peers"][name] = {{"name", peer.name}, {"us", peer.us}};
  }
  json["attention"] = ToJsonArray(report.attention);
  json["compression"] = ToJsonArray(report.compression);
  json["prefill"] = ToJsonArray(report.prefill);
  json["cpu"] = ToJsonArray(report.cpu);
  return json;
}

std::string ToText(const BenchReport& report) {
  std::string text;
  for (const std::string& line : report.data) absl::StrAppend(&text, "data: ", line, "\n");
  if (report.device.has_value()) {
    absl::StrAppendFormat(&text, "%s, %d SMs, L2 %.0f MB, driver %d, runtime %d\n",
                          report.device->name, report.device->num_sms,
                          static_cast<double>(report.device->l2_bytes) / 1e6,
                          report.device->driver_version, report.device->runtime_version);
  }
  if (report.ceilings.has_value()) {
    absl::StrAppendFormat(&text, "ceilings: read %.3f TB/s (%s), copy %.3f TB/s (%s)\n",
                          report.ceilings->read_bytes_per_s / 1e12, report.ceilings->read_by,
                          report.ceilings->copy_bytes_per_s / 1e12, report.ceilings->copy_by);
  }
  if (!report.attention.empty()) absl::StrAppend(&text, "\n", AttentionText(report));
  if (!report.compression.empty()) absl::StrAppend(&text, "\n", CompressionText(report));
  if (!report.prefill.empty()) absl::StrAppend(&text, "\n", PrefillText(report));
  if (!report.cpu.empty()) absl::StrAppend(&text, "\n", CpuText(report));
  return text;
}

}  // namespace pkv
