// pkvctl: what operators and developers do with patternkv by hand.

#include <unistd.h>

#include <CLI/CLI.hpp>

#include "proto/base/log.h"
#include "proto/config/command_line.h"
#include "worker/ctl/commands.h"

namespace pkv {
namespace {

void Declare(OptionTable& table, GlobalFlags& global) {
  table.AddText({.name = "cache",
                 .help = "pkvd to talk to, host:port or unix:/path; lookup and stats take several, "
                         "separated by commas"},
                global.cache);
  table.AddWord(
      {.name = "transport",
       .help = "how get reads and put writes: in memory of a pkvd on this host (shm), over "
               "the network (grpc), or auto"},
      global.transport, {"auto", "grpc", "shm"});
  table.AddText({.name = "prefill", .help = "prefill worker of generate and compare"},
                global.prefill);
  table.AddText({.name = "decode", .help = "decode worker of generate and compare"}, global.decode);
  table.AddDuration({.name = "deadline", .help = "for each call of a worker"}, global.deadline,
                    {.min = absl::Milliseconds(1), .max = absl::Hours(24)});
  table.AddWord({.name = "output", .help = "text, or json: one document on stdout"}, global.output,
                {"text", "json"});
  table.AddSwitch({.name = "progress", .help = "a progress line on a terminal"}, global.progress);
}

int Main(int argc, char** argv) {
  CLI::App app("Operator's tool of patternkv", "pkvctl");
  app.set_version_flag("--version", PKV_VERSION);
  app.require_subcommand(0, 1);
  app.fallthrough();
  GlobalFlags global;
  OptionTable table;
  Declare(table, global);
  AddCompletionFlag(app);
  // A name of its own: in a pod PKV_CONFIG is the service's file.
  ConfigFlags config(app, table, "PKV_CTL_CONFIG");
  // Before the subcommand runs.
  app.parse_complete_callback([&] {
    const auto no_more_rules = [] { return absl::OkStatus(); };
    if (const std::optional<int> exit_code =
            config.Load("pkvctl", ReadEnvironment(environ), no_more_rules)) {
      throw CLI::RuntimeError(*exit_code);
    }
    if (app.get_subcommands().empty()) throw CLI::RequiredError::Subcommand(1);
  });
  app.footer(
      "Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 unavailable, 5 integrity.\n"
      "Examples:\n"
      "  pkvctl generate --prompt 'It was a dark and stormy night' --preset default --max-tokens "
      "64\n"
      "  pkvctl lookup --model deploy/models/novella-14m --prompt-file book.txt --preset default\n"
      "  pkvctl eval --model deploy/models/novella-14m --text book.txt --preset pkv2 --preset "
      "default:clip_v=none --report report.html\n"
      "  pkvctl capacity --shape llama-3.1-8b --preset fp16,default --tokens 32768\n");
  ConfigureLog(LogLevel::kWarning, LogFormat::kText);
  int exit_code = 0;
  AddGenerateCommand(app, global, exit_code);
  AddCompareCommand(app, global, exit_code);
  AddEvalCommand(app, global, exit_code);
  AddCapacityCommand(app, global, exit_code);
  AddLookupCommand(app, global, exit_code);
  AddObjectCommands(app, global, exit_code);
  return ParseCommandLine(app, argc, argv).value_or(exit_code);
}

}  // namespace
}  // namespace pkv

int main(int argc, char** argv) { return pkv::Main(argc, argv); }
