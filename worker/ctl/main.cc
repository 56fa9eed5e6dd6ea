// pkvctl: what operators and developers do with patternkv by hand.

#include <CLI/CLI.hpp>

#include "proto/base/log.h"
#include "worker/ctl/commands.h"

int main(int argc, char** argv) {
  CLI::App app("Operator's tool of patternkv");
  app.set_version_flag("--version", PKV_VERSION);
  app.require_subcommand(1);
  app.fallthrough();
  pkv::GlobalFlags global;
  app.add_option("--cache", global.cache, "pkvd to talk to, host:port or unix:/path")
      ->envname("PKV_CACHE")
      ->capture_default_str();
  app.add_option("--transport", global.transport,
                 "how get reads: in place on one host (shm), over the network (grpc), or auto")
      ->envname("PKV_TRANSPORT")
      ->check(CLI::IsMember({"auto", "grpc", "shm"}))
      ->capture_default_str();
  app.add_option("--output", global.output, "text, or json: one document on stdout")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  app.add_flag("--no-progress", global.no_progress, "no progress line on a terminal");
  app.footer(
      "Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 unavailable, 5 integrity.\n"
      "Examples:\n"
      "  pkvctl generate --prompt 'It was a dark and stormy night' --preset default --max-tokens "
      "64\n"
      "  pkvctl lookup --model deploy/models/novella-14m --prompt-file book.txt --preset default\n"
      "  pkvctl eval --model deploy/models/novella-14m --text book.txt --preset pkv2 --preset "
      "default:clip_v=none --report report.html\n"
      "  pkvctl capacity --shape llama-3.1-8b --preset fp16,default --tokens 32768\n");
  pkv::ConfigureLog(pkv::LogLevel::kWarning, pkv::LogFormat::kText);
  int exit_code = 0;
  pkv::AddGenerateCommand(app, global, exit_code);
  pkv::AddCompareCommand(app, global, exit_code);
  pkv::AddEvalCommand(app, global, exit_code);
  pkv::AddCapacityCommand(app, global, exit_code);
  pkv::AddLookupCommand(app, global, exit_code);
  pkv::AddObjectCommands(app, global, exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return exit_code;
}
