#include "proto/metrics/process_collector.h"

#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

namespace pkv {
namespace {

std::string ReadWhole(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

void Add(std::vector<prometheus::MetricFamily>& families, const char* name, const char* help,
         prometheus::MetricType type, double value) {
  prometheus::ClientMetric metric;
  if (type == prometheus::MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  families.push_back({name, help, type, {metric}});
}

// Seconds since the epoch at which the machine started; 0 when unknown.
double BootTime(const std::string& proc) {
  std::istringstream lines(ReadWhole(proc + "/stat"));
  std::string key;
  while (lines >> key) {
    double seconds = 0;
    if (key == "btime" && lines >> seconds) return seconds;
    lines.ignore(1 << 20, '\n');
  }
  return 0;
}

// proc(5), /proc/[pid]/stat. The second field is a file name in parentheses and may hold anything,
// so fields are counted from the last parenthesis: the one after it is number 3.
std::vector<double> StatFields(const std::string& stat) {
  std::vector<double> fields;
  const size_t close = stat.rfind(')');
  if (close == std::string::npos) return fields;
  std::istringstream rest(stat.substr(close + 1));
  std::string state;
  rest >> state;
  double value;
  while (rest >> value) fields.push_back(value);
  return fields;
}

}  // namespace

std::vector<prometheus::MetricFamily> ProcessCollector::Collect() const {
  using prometheus::MetricType;
  std::vector<prometheus::MetricFamily> families;
  const double ticks_per_second = static_cast<double>(sysconf(_SC_CLK_TCK));
  // Numbers 4.. of proc(5): field n is fields[n - 4].
  const std::vector<double> fields = StatFields(ReadWhole(proc_ + "/self/stat"));
  if (fields.size() > 20) {
    Add(families, "process_cpu_seconds_total", "User and system CPU time", MetricType::Counter,
        (fields[14 - 4] + fields[15 - 4]) / ticks_per_second);
    Add(families, "process_threads", "Threads", MetricType::Gauge, fields[20 - 4]);
    Add(families, "process_virtual_memory_bytes", "Virtual memory", MetricType::Gauge,
        fields[23 - 4]);
    Add(families, "process_resident_memory_bytes", "Resident memory", MetricType::Gauge,
        fields[24 - 4] * static_cast<double>(sysconf(_SC_PAGESIZE)));
    if (const double boot_time = BootTime(proc_); boot_time > 0) {
      Add(families, "process_start_time_seconds", "Start, since the epoch", MetricType::Gauge,
          boot_time + fields[22 - 4] / ticks_per_second);
    }
  }
  std::error_code error;
  const std::filesystem::directory_iterator fds(proc_ + "/self/fd", error);
  if (!error) {
    Add(families, "process_open_fds", "Open file descriptors", MetricType::Gauge,
        static_cast<double>(std::distance(begin(fds), end(fds))));
  }
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    Add(families, "process_max_fds", "Limit of open file descriptors", MetricType::Gauge,
        static_cast<double>(limit.rlim_cur));
  }
  return families;
}

}  // namespace pkv
