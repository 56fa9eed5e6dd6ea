#ifndef PKV_WORKER_CTL_COMMANDS_H_
#define PKV_WORKER_CTL_COMMANDS_H_

#include <string>

#include "absl/time/time.h"

namespace CLI {
class App;
}

namespace pkv {

// Settings of every subcommand.
struct GlobalFlags {
  std::string cache = "127.0.0.1:7440";
  std::string transport = "auto";  // ParseTransport()
  std::string prefill = "127.0.0.1:7441";
  std::string decode = "127.0.0.1:7442";
  absl::Duration deadline = absl::Minutes(2);  // of each call of a worker
  std::string output = "text";
  bool progress = true;

  bool json() const { return output == "json"; }
};

// Each adds subcommands to `app`; the one that is chosen leaves the process's exit code in
// `exit_code`. `global` and `exit_code` must outlive the parse.
void AddObjectCommands(CLI::App& app, const GlobalFlags& global,
                       int& exit_code);  // put get stat inspect rm stats drain
void AddLookupCommand(CLI::App& app, const GlobalFlags& global, int& exit_code);    // lookup
void AddGenerateCommand(CLI::App& app, const GlobalFlags& global, int& exit_code);  // generate
void AddCompareCommand(CLI::App& app, const GlobalFlags& global, int& exit_code);   // compare
void AddEvalCommand(CLI::App& app, const GlobalFlags& global, int& exit_code);      // eval
void AddCapacityCommand(CLI::App& app, const GlobalFlags& global, int& exit_code);  // capacity

}  // namespace pkv

#endif  // PKV_WORKER_CTL_COMMANDS_H_
