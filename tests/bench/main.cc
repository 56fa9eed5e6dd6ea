// pkv-bench: what patternkv's parts can do on this machine.

#include <CLI/CLI.hpp>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/config/command_line.h"
#include "tests/bench/commands.h"
#ifdef PKV_WITH_CUDA
#include "tests/bench/decode_command.h"
#include "tests/bench/prefill_command.h"
#endif

int main(int argc, char** argv) {
  CLI::App app("Benchmarks of patternkv", "pkv-bench");
  app.set_version_flag("--version", PKV_VERSION);
  app.require_subcommand(1);
  pkv::AddCompletionFlag(app);
  pkv::ConfigureLog(pkv::LogLevel::kWarning, pkv::LogFormat::kText);
  std::string command_line = argv[0];
  for (int i = 1; i < argc; ++i) absl::StrAppend(&command_line, " ", argv[i]);
  int exit_code = 0;
  pkv::AddKernelsCommand(app, command_line, exit_code);
  pkv::AddServeCommand(app, command_line, exit_code);
#ifdef PKV_WITH_CUDA
  pkv::AddDecodeCommand(app, exit_code);
  pkv::AddPrefillCommand(app, exit_code);
#endif
  return pkv::ParseCommandLine(app, argc, argv).value_or(exit_code);
}
