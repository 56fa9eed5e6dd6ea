#include "proto/config/command_line.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "proto/config/completion.h"

namespace pkv {
namespace {

void Print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

// The app whose options the command line was at when it ended: the subcommand, if there is one.
const CLI::App& InnermostApp(const CLI::App& app) {
  const std::vector<CLI::App*> parsed = app.get_subcommands();
  return parsed.empty() ? app : *parsed.front();
}

// ": did you mean '--capacity'?" for the first word that no app took.
std::string SuggestFlag(const CLI::App& app) {
  for (const std::string& word : app.remaining(/*recurse=*/true)) {
    if (!absl::StartsWith(word, "--")) continue;
    std::vector<std::string> known;
    for (const CLI::App* owner : {&InnermostApp(app), &app}) {
      for (const CLI::Option* option : owner->get_options()) {
        for (const std::string& name : option->get_lnames())
          known.push_back(absl::StrCat("--", name));
      }
    }
    return DidYouMean(word.substr(0, word.find('=')), known);
  }
  return "";
}

// "TEXT [127.0.0.1:7440] (Env:PKV_LISTEN)"
std::string HelpText(const OptionTable::Option& option) {
  std::string text;
  if (!option.is_switch) {
    absl::StrAppend(&text, " ", option.type);
    if (!option.default_text.empty()) absl::StrAppend(&text, " [", option.default_text, "]");
  } else {
    absl::StrAppend(&text, " [", option.default_text, "]");
  }
  return absl::StrCat(absl::StripPrefix(text, " "), " (Env:", option.variable, ")");
}

}  // namespace

void AddSecondsFlag(CLI::App& app, const std::string& name, double& seconds,
                    const std::string& help, const Bounds<absl::Duration>& bounds) {
  // The table checks and describes as it does for a setting; only the flag stays.
  const auto value = std::make_shared<absl::Duration>(absl::Seconds(seconds));
  const auto table = std::make_shared<OptionTable>();
  table->AddDuration({.name = name, .help = help}, *value, bounds);
  const OptionTable::Option& option = table->options().front();
  app.add_option_function<std::string>(
         absl::StrCat("--", name),
         [value, table, &seconds](const std::string& text) {
           const OptionTable::Option& declared = table->options().front();
           if (const absl::Status status = declared.set(text); !status.ok()) {
             throw CLI::ValidationError(absl::StrCat("--", declared.info.name),
                                        std::string(status.message()));
           }
           seconds = absl::ToDoubleSeconds(*value);
         },
         help)
      ->option_text(seconds == 0 ? option.type
                                 : absl::StrCat(option.type, " [", option.default_text, "]"));
}

void AddCompletionFlag(CLI::App& app) {
  app.add_option_function<std::string>(
         "--completion",
         [&app](const std::string& shell) {
           Print(CompletionScript(app, shell));
           throw CLI::Success();
         },
         "print the script that completes this command, and end")
      ->check(CLI::IsMember(CompletionShells()))
      ->option_text("{bash,zsh,fish}");
}

std::optional<int> ParseCommandLine(CLI::App& app, int argc, const char* const* argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ExtrasError& error) {
    app.exit(error);
    if (const std::string meant = SuggestFlag(app); !meant.empty()) {
      std::fprintf(stderr, "%s\n", std::string(absl::StripPrefix(meant, ": ")).c_str());
    }
    return kExitUsage;
  } catch (const CLI::RuntimeError& error) {
    return error.get_exit_code();
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitUsage;
  }
  return std::nullopt;
}

ConfigFlags::ConfigFlags(CLI::App& app, const OptionTable& table, std::string file_variable)
    : table_(table), file_variable_(std::move(file_variable)) {
  for (const OptionTable::Option& option : table.options()) {
    const std::string& name = option.info.name;
    CLI::Option* flag = option.is_switch ? app.add_flag(absl::StrCat("--", name, ",!--no-", name))
                                         : app.add_option(absl::StrCat("--", name));
    flag->description(option.info.help)->option_text(HelpText(option));
    options_[name] = flag;
  }
  config_ = app.add_option("--config");
  config_->description("YAML file of these options; one named -PATH may be missing")
      ->option_text(absl::StrCat("PATH (Env:", file_variable_, ")"));
  print_ = app.add_flag("--print-config");
  print_->description("print every setting and where it comes from, as such a file, and end");
  check_ = app.add_flag("--check-config");
  check_->description("check the settings, and end with 0 or 2");
  describe_ = app.add_flag("--describe-config")->group("");  // deploy/CONFIGURATION.md
}

std::optional<int> ConfigFlags::Load(const std::string& program, const Environment& environment,
                                     const std::function<absl::Status()>& check) {
  if (describe_->count() > 0) {
    Print(ConfigTableMarkdown(table_));
    return 0;
  }
  input_.environment = environment;
  for (const auto& [name, option] : options_) {
    if (option->count() > 0) input_.flags[name] = option->results().back();
  }
  const auto file = environment.find(file_variable_);
  if (config_->count() > 0) {
    input_.file = config_->results().back();
  } else if (file != environment.end()) {
    input_.file = file->second;
  }
  loaded_ = LoadConfig(table_, input_);
  std::vector<std::string> known = table_.variables();
  known.push_back(file_variable_);
  loaded_.warnings = UnknownVariables(environment, known);
  if (loaded_.problems.empty()) {
    if (const absl::Status status = check(); !status.ok()) {
      loaded_.problems.emplace_back(status.message());
    }
  }
  for (const std::string& problem : loaded_.problems) {
    std::fprintf(stderr, "%s: %s\n", program.c_str(), problem.c_str());
  }
  if (!loaded_.problems.empty()) return kExitUsage;
  if (print_->count() == 0 && check_->count() == 0) return std::nullopt;
  for (const std::string& warning : loaded_.warnings) {
    std::fprintf(stderr, "%s: %s\n", program.c_str(), warning.c_str());
  }
  if (print_->count() > 0) {
    Print(ConfigYaml(table_, loaded_.origins));
  } else {
    std::fprintf(stderr, "%s: the configuration is valid\n", program.c_str());
  }
  return 0;
}

StartedProgram StartProgram(const Program& program, const OptionTable& table, int argc,
                            const char* const* argv, const char* const* environment,
                            const std::function<absl::Status()>& check) {
  CLI::App app(program.description, program.name);
  app.set_version_flag("--version", program.version);
  app.footer(program.footer);
  AddCompletionFlag(app);
  CLI::App* options = &app;
  if (!program.subcommand.empty()) {
    app.require_subcommand(1);
    options = app.add_subcommand(program.subcommand, program.subcommand_help);
  }
  ConfigFlags flags(*options, table, "PKV_CONFIG");
  StartedProgram started;
  started.exit_code = ParseCommandLine(app, argc, argv);
  if (started.exit_code.has_value()) return started;
  started.exit_code = flags.Load(program.name, ReadEnvironment(environment), check);
  started.input = flags.input();
  started.loaded = flags.loaded();
  return started;
}

}  // namespace pkv
