#include "proto/metrics/process_collector.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <ctime>
#include <map>
#include <string>

namespace pkv {
namespace {

std::map<std::string, double> Collect(const ProcessCollector& collector) {
  std::map<std::string, double> values;
  for (const prometheus::MetricFamily& family : collector.Collect()) {
    const prometheus::ClientMetric& metric = family.metric.at(0);
    values[family.name] =
        family.type == prometheus::MetricType::Counter ? metric.counter.value : metric.gauge.value;
  }
  return values;
}

TEST(ProcessCollectorTest, ReportsTheAgreedNames) {
  EXPECT_THAT(Collect(ProcessCollector()),
              ::testing::UnorderedElementsAre(
                  ::testing::Key("process_cpu_seconds_total"), ::testing::Key("process_open_fds"),
                  ::testing::Key("process_max_fds"), ::testing::Key("process_threads"),
                  ::testing::Key("process_resident_memory_bytes"),
                  ::testing::Key("process_virtual_memory_bytes"),
                  ::testing::Key("process_start_time_seconds")));
}

TEST(ProcessCollectorTest, SeesAnOpenedDescriptor) {
  const ProcessCollector collector;
  const double before = Collect(collector)["process_open_fds"];
  const int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  EXPECT_EQ(Collect(collector)["process_open_fds"], before + 1);
  close(fd);
}

TEST(ProcessCollectorTest, ValuesAreOfThisProcess) {
  std::map<std::string, double> values = Collect(ProcessCollector());
  EXPECT_GE(values["process_threads"], 1);
  EXPECT_GE(values["process_virtual_memory_bytes"], values["process_resident_memory_bytes"]);
  EXPECT_GE(values["process_resident_memory_bytes"], static_cast<double>(sysconf(_SC_PAGESIZE)));
  EXPECT_GT(values["process_start_time_seconds"], 0);
  // One second: procfs rounds the start of the machine to a whole one.
  EXPECT_LE(values["process_start_time_seconds"], static_cast<double>(std::time(nullptr)) + 1);
}

TEST(ProcessCollectorTest, LeavesOutWhatItCannotRead) {
  EXPECT_THAT(Collect(ProcessCollector("/nonexistent")),
              ::testing::ElementsAre(::testing::Key("process_max_fds")));
}

}  // namespace
}  // namespace pkv
