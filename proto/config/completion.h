#ifndef PKV_PROTO_CONFIG_COMPLETION_H_
#define PKV_PROTO_CONFIG_COMPLETION_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace CLI {
class App;
}

namespace pkv {

// bash, zsh, fish.
std::vector<std::string> CompletionShells();

// The script by which `shell` completes the command `app`: its subcommands, the options of where
// the line is, and the values of an option that takes one of a few words; everywhere else files.
// `app` has a name. A value's words are those of "{text,json}" in an option's help.
// REQUIRES: `shell` is one of CompletionShells(), subcommands have none of their own.
std::string CompletionScript(const CLI::App& app, absl::string_view shell);

}  // namespace pkv

#endif  // PKV_PROTO_CONFIG_COMPLETION_H_
