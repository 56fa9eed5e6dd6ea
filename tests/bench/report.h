#ifndef PKV_TESTS_BENCH_REPORT_H_
#define PKV_TESTS_BENCH_REPORT_H_

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/bench/attention_case.h"
#include "tests/bench/sample_summary.h"

namespace pkv {

// No memory of the GPUs this is written for moves more: a time below bytes / 5 TB/s is an error of
// the measurement.
inline constexpr double kImpossibleBytesPerSecond = 5e12;

// How far ||out - reference|| / ||reference|| may be off before a time is of a wrong result: ten
// times what fp16 operands of both products cost. kernels/README.md derives the bounds that tests
// hold kernels to.
inline constexpr double kWrongRelativeError = 1e-2;

struct DeviceInfo {
  std::string name;
  int num_sms = 0;
  int64_t l2_bytes = 0, memory_bytes = 0;
  int sm_clock_khz = 0, memory_clock_khz = 0;  // the largest the device names
  int driver_version = 0, runtime_version = 0;
};

struct Ceilings {
  double read_bytes_per_s = 0;  // the best of the ways to read that were tried
  std::string read_by;          // which one
  double copy_bytes_per_s = 0;  // read and written bytes; the best of the ways likewise
  std::string copy_by;
};

struct AttentionRow {
  AttentionCase attention_case;
  std::string preset, data;
  LaunchBytes bytes;
  double operations = 0;
  int copies = 0, launches = 0;  // of the buffers; in one repetition
  bool graph = true;             // captured; false: launched one by one
  SampleSummary us;              // of one launch
  double relative_error = 0;

  double bytes_per_s() const { return static_cast<double>(bytes.own()) / (us.median * 1e-6); }
  double operations_per_s() const { return operations / (us.median * 1e-6); }
  // Why the row cannot be believed: too short a time, or a wrong result. Empty: nothing is wrong.
  std::string Fault() const;
};

// One stage of compressing the K and V of a prompt's layer.
struct CompressionRow {
  std::string preset, data = {}, stage = {};
  int num_tokens = 0, num_kv_heads = 0, head_dim = 0;
  int64_t moved_bytes = 0;  // fp16 read once and blocks written
  bool graph = true;        // as in AttentionRow
  int wrong_pages = 0;      // that differ from the CPU's, where they must not
  SampleSummary us = {};

  double bytes_per_s() const { return static_cast<double>(moved_bytes) / (us.median * 1e-6); }
  std::string Fault() const;
};

// One kernel of a prefill pass.
struct PrefillRow {
  std::string what;
  int num_queries = 0, num_tokens = 0, num_qo_heads = 0, num_kv_heads = 0, head_dim = 0;
  double operations = 0;  // multiply-adds on tensor cores, times two; 0: not counted
  bool graph = true;      // as in AttentionRow
  SampleSummary us = {};

  double operations_per_s() const { return operations / (us.median * 1e-6); }
};

// One core: a codec or attention, in bytes of fp16 input or of blocks.
struct CpuRow {
  std::string preset, data = {}, what = {};
  int heads_per_kv = 0;  // attention
  int64_t bytes = 0;     // of one repetition
  SampleSummary seconds = {};

  double best_bytes_per_s() const { return static_cast<double>(bytes) / seconds.min; }
  double median_bytes_per_s() const { return static_cast<double>(bytes) / seconds.median; }
};

// The best time of another library's fp16 attention, by AttentionCase::Name().
struct Peer {
  std::string name;
  double us = 0;
};
using Peers = std::map<std::string, Peer>;
// {"8x32k": {"name": "cudnn", "us": 241.5}, ...}. InvalidArgument: not that, or no such file.
absl::StatusOr<Peers> ReadPeers(const std::string& path);

struct BenchReport {
  std::string command_line;
  std::vector<std::string> data;  // descriptions
  std::optional<DeviceInfo> device;
  std::optional<Ceilings> ceilings;
  std::vector<AttentionRow> attention;
  std::vector<CompressionRow> compression;
  std::vector<PrefillRow> prefill;
  std::vector<CpuRow> cpu;
  Peers peers;

  // FailedPrecondition names the rows with a Fault().
  absl::Status CheckPlausible() const;
};

nlohmann::ordered_json ToJson(const AttentionCase& attention_case);
nlohmann::ordered_json ToJson(const BenchReport& report);
// What people read.
std::string ToText(const BenchReport& report);

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_REPORT_H_
