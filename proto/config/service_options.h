#ifndef PKV_PROTO_CONFIG_SERVICE_OPTIONS_H_
#define PKV_PROTO_CONFIG_SERVICE_OPTIONS_H_

// Options that every service has, under the same names and with the same meaning.

#include "absl/time/time.h"
#include "proto/base/log.h"
#include "proto/config/option_table.h"

namespace pkv {

struct LogSettings {
  LogLevel level = LogLevel::kInfo;
  LogFormat format = LogFormat::kText;
};

inline void AddLogOptions(OptionTable& table, LogSettings& log) {
  table.AddChoice<LogLevel>(
      {.name = "log-level", .help = "the least that is worth a line", .reloadable = true},
      log.level,
      {{"debug", LogLevel::kDebug},
       {"info", LogLevel::kInfo},
       {"warning", LogLevel::kWarning},
       {"error", LogLevel::kError}});
  table.AddChoice<LogFormat>({.name = "log-format", .help = "of the lines on stderr"}, log.format,
                             {{"text", LogFormat::kText}, {"json", LogFormat::kJson}});
}

inline void AddDrainTimeout(OptionTable& table, absl::Duration& drain_timeout) {
  table.AddDuration({.name = "drain-timeout",
                     .help = "after SIGTERM, calls in flight get this long to end",
                     .reloadable = true},
                    drain_timeout, {.min = absl::ZeroDuration(), .max = absl::Hours(1)});
}

}  // namespace pkv

#endif  // PKV_PROTO_CONFIG_SERVICE_OPTIONS_H_
