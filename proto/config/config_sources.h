#ifndef PKV_PROTO_CONFIG_CONFIG_SOURCES_H_
#define PKV_PROTO_CONFIG_CONFIG_SOURCES_H_

// Where settings come from: flag before environment before file before built-in default.

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/config/known_names.h"
#include "proto/config/option_table.h"

namespace pkv {

// What a process is started with. The file alone may differ when it is loaded again.
struct ConfigInput {
  std::map<std::string, std::string> flags = {};  // option name -> text
  Environment environment = {};
  // Empty: none. A path after '-' may be missing, as in systemd's EnvironmentFile=-/path.
  std::string file = {};
};

// Where a value came from: "flag", "environment PKV_X", "file /etc/pkv/pkvd.yaml:3", "default".
using Origins = std::map<std::string, std::string>;

struct LoadedConfig {
  std::vector<std::string> problems;  // one line each, all there are; empty: the values are set
  std::vector<std::string> warnings;  // variables that nobody reads
  Origins origins;
  std::string file;  // that was read; empty: none
};

// Sets what `table` is bound to. Every source is checked, one that a stronger one overrides too:
// what is wrong with it would come to light on another day. With problems, values are unspecified.
LoadedConfig LoadConfig(const OptionTable& table, const ConfigInput& input);

// The values as a file that LoadConfig reads back, each with its help and its origin as comments.
std::string ConfigYaml(const OptionTable& table, const Origins& origins);

// Rows of deploy/CONFIGURATION.md: option, variable, type, default, reloadable, help.
std::string ConfigTableMarkdown(const OptionTable& table);

// Of all values, wherever they came from: processes with the same settings have the same.
uint32_t ConfigHash(const OptionTable& table);

enum class ReloadResult {
  kSuccess,  // every change has taken effect, if there was one
  kPartial,  // some changes need a restart and have not
  kFailure   // what is there now is no valid configuration; nothing has changed
};

// Takes over from `fresh`, which was loaded, the values of reloadable options, and logs every
// option whose value differs: what has changed, and what keeps its old value until a restart.
// `check` looks at what `running` is bound to; when it fails everything is as before, kFailure.
ReloadResult TakeOver(const OptionTable& running, const OptionTable& fresh,
                      const std::function<absl::Status()>& check);

}  // namespace pkv

#endif  // PKV_PROTO_CONFIG_CONFIG_SOURCES_H_
