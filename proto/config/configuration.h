#ifndef PKV_PROTO_CONFIG_CONFIGURATION_H_
#define PKV_PROTO_CONFIG_CONFIGURATION_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "proto/base/log.h"
#include "proto/config/command_line.h"
#include "proto/config/config_sources.h"
#include "proto/config/option_table.h"

namespace pkv {

// A service's settings, from its start through every SIGHUP.
//
// Thread-compatible: Start and Reload are for the thread that waits for signals.
template <typename Settings>
class Configuration {
 public:
  // Binds the table to the settings; whose values are the defaults, called once for each load.
  using Declare = std::function<void(OptionTable&, Settings&)>;
  // What no option shows alone: InvalidArgument, naming the options.
  using Check = std::function<absl::Status(const Settings&)>;

  Configuration(Declare declare, Check check)
      : declare_(std::move(declare)), check_(std::move(check)) {
    declare_(table_, settings_);
  }
  Configuration(const Configuration&) = delete;
  Configuration& operator=(const Configuration&) = delete;

  // The exit code when there is nothing to serve: usage, --help, --print-config and the like.
  std::optional<int> Start(const Program& program, int argc, const char* const* argv,
                           const char* const* environment) {
    StartedProgram started = StartProgram(program, table_, argc, argv, environment,
                                          [this] { return check_(settings_); });
    input_ = std::move(started.input);
    loaded_ = std::move(started.loaded);
    return started.exit_code;
  }

  // What Start found worth a line, once the log is configured.
  void LogStart() const {
    for (const std::string& warning : loaded_.warnings) Log(LogLevel::kWarning, warning);
    if (!loaded_.file.empty()) {
      Log(LogLevel::kInfo, "configuration file", {{"path", loaded_.file}});
    }
  }

  const Settings& settings() const { return settings_; }
  uint32_t Hash() const { return ConfigHash(table_); }  // of settings()

  // Reads the file again. settings() has new values for reloadable options when this is not
  // kFailure; everything is logged.
  ReloadResult Reload() {
    Settings fresh;
    OptionTable table;
    declare_(table, fresh);
    const LoadedConfig loaded = LoadConfig(table, input_);
    for (const std::string& problem : loaded.problems) {
      Log(LogLevel::kError, "configuration refused, nothing changed", {{"why", problem}});
    }
    if (!loaded.problems.empty()) return ReloadResult::kFailure;
    if (const absl::Status status = check_(fresh); !status.ok()) {
      Log(LogLevel::kError, "configuration refused, nothing changed", {{"why", status.message()}});
      return ReloadResult::kFailure;
    }
    return TakeOver(table_, table, [this] { return check_(settings_); });
  }

 private:
  const Declare declare_;
  const Check check_;
  Settings settings_;
  OptionTable table_;
  ConfigInput input_;
  LoadedConfig loaded_;
};

}  // namespace pkv

#endif  // PKV_PROTO_CONFIG_CONFIGURATION_H_
