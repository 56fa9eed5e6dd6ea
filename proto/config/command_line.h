#ifndef PKV_PROTO_CONFIG_COMMAND_LINE_H_
#define PKV_PROTO_CONFIG_COMMAND_LINE_H_

// The command line of every program of the project, by CLI11.

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/config/config_sources.h"
#include "proto/config/option_table.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace pkv {

// Adds an option that is no setting: of one run of a tool. Its duration has a unit, as everywhere,
// and goes to `seconds`, whose value is the default, shown unless it is 0.
void AddSecondsFlag(CLI::App& app, const std::string& name, double& seconds,
                    const std::string& help, const Bounds<absl::Duration>& bounds);

// As every program answers a wrong command line or configuration.
inline constexpr int kExitUsage = 2;

// Adds --completion bash|zsh|fish: prints the script that completes `app` and everything that is
// added to it later, and ends the parse as --help does.
void AddCompletionFlag(CLI::App& app);

// parse() with errors told as by CLI11, and a suggestion for an option that there is not. nullopt:
// go on. REQUIRES: callbacks that fail throw CLI::Error.
std::optional<int> ParseCommandLine(CLI::App& app, int argc, const char* const* argv);

// The flags of a table's options on one app or subcommand, and what goes with them: --config,
// --print-config and --check-config. What they say is read after the parse.
//
// Thread-compatible.
class ConfigFlags {
 public:
  // Both arguments outlive this. `file_variable` may name the file in place of --config.
  ConfigFlags(CLI::App& app, const OptionTable& table, std::string file_variable);

  // Loads the table's values by what was parsed and by `environment`; then does what --print-config
  // and --check-config ask for. `check` looks at the values as a whole: what no single option
  // shows. Returns the exit code when nothing is left to do: 0, or kExitUsage after every problem
  // was written to stderr as "PROGRAM: problem".
  std::optional<int> Load(const std::string& program, const Environment& environment,
                          const std::function<absl::Status()>& check);

  // What Load saw.
  const ConfigInput& input() const { return input_; }
  const LoadedConfig& loaded() const { return loaded_; }

 private:
  const OptionTable& table_;
  const std::string file_variable_;
  std::map<std::string, CLI::Option*> options_;  // by name
  CLI::Option* config_;
  CLI::Option* print_;
  CLI::Option* check_;
  CLI::Option* describe_;
  ConfigInput input_;
  LoadedConfig loaded_;
};

// A service's main program: PROGRAM [SUBCOMMAND] [OPTION]...
struct Program {
  std::string name;                                   // "pkv-decode"
  std::string description;                            // of --help
  std::string version;                                // what --version prints
  std::string subcommand = {}, subcommand_help = {};  // empty: none; otherwise it must be given
  std::string footer = {};
};

struct StartedProgram {
  std::optional<int> exit_code;  // empty: go on and serve
  ConfigInput input;
  LoadedConfig loaded;
};

// Parses the command line and loads `table`, PKV_CONFIG naming the file in place of --config.
// `environment` is null-terminated.
StartedProgram StartProgram(const Program& program, const OptionTable& table, int argc,
                            const char* const* argv, const char* const* environment,
                            const std::function<absl::Status()>& check);

}  // namespace pkv

#endif  // PKV_PROTO_CONFIG_COMMAND_LINE_H_
