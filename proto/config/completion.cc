#include "proto/config/completion.h"

#include <CLI/CLI.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "proto/base/log.h"

namespace pkv {
namespace {

struct Flag {
  std::string name;  // "--log-level" or "-o"
  std::string help;
  bool takes_value = false;
  std::vector<std::string> choices;
};

struct Command {
  std::string name;  // empty: the program itself
  std::string help;
  std::vector<Flag> flags = {};
};

// The words of "{text,json}" in what help says of the option.
std::vector<std::string> Choices(const CLI::Option& option) {
  const std::string text =
      option.get_option_text().empty() ? option.get_type_name() : option.get_option_text();
  const size_t begin = text.find('{'), end = text.find('}');
  if (begin == std::string::npos || end == std::string::npos || end < begin) return {};
  return absl::StrSplit(text.substr(begin + 1, end - begin - 1), ',');
}

Command Describe(const CLI::App& app, const std::string& name) {
  Command command{.name = name, .help = app.get_description()};
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_group().empty()) continue;  // hidden
    const bool takes_value = option->get_expected_max() > 0 && option->get_type_size() > 0;
    const auto add = [&](const std::string& flag) {
      command.flags.push_back({flag, option->get_description(), takes_value, Choices(*option)});
    };
    for (const std::string& one : option->get_snames()) add(absl::StrCat("-", one));
    for (const std::string& one : option->get_lnames()) add(absl::StrCat("--", one));
  }
  return command;
}

// The program, then its subcommands.
std::vector<Command> Commands(const CLI::App& app) {
  std::vector<Command> commands = {Describe(app, "")};
  for (const CLI::App* one : app.get_subcommands([](const CLI::App*) { return true; })) {
    commands.push_back(Describe(*one, one->get_name()));
  }
  return commands;
}

std::vector<std::string> SubcommandNames(const std::vector<Command>& commands) {
  std::vector<std::string> names;
  for (size_t i = 1; i < commands.size(); ++i) names.push_back(commands[i].name);
  return names;
}

// "_pkv_decode", which is a name in every shell.
std::string FunctionName(const std::string& program) {
  return absl::StrCat("_", absl::StrReplaceAll(program, {{"-", "_"}}));
}

std::string BashScript(const std::string& program, const std::vector<Command>& commands) {
  const std::string function = FunctionName(program);
  std::string values, words;
  for (const Command& command : commands) {
    std::vector<std::string> candidates, others;
    for (const Flag& flag : command.flags) {
      candidates.push_back(flag.name);
      const std::string here = absl::StrCat(command.name, ":", flag.name);
      if (!flag.choices.empty()) {
        absl::StrAppend(&values, "    ", here, ") words=\"", absl::StrJoin(flag.choices, " "),
                        "\" ;;\n");
      } else if (flag.takes_value) {
        others.push_back(here);
      }
    }
    if (!others.empty()) {
      absl::StrAppend(&values, "    ", absl::StrJoin(others, " | "), ") return ;;\n");
    }
    if (command.name.empty()) {
      for (const std::string& name : SubcommandNames(commands)) candidates.push_back(name);
    }
    absl::StrAppend(&words, "        \"", command.name, "\") words=\"",
                    absl::StrJoin(candidates, " "), "\" ;;\n");
  }
  const std::vector<std::string> names = SubcommandNames(commands);
  const std::string find_command =
      names.empty()
          ? ""
          : absl::StrCat("  for ((i = 1; i < COMP_CWORD; i++)); do\n    case ${COMP_WORDS[i]} in ",
                         absl::StrJoin(names, " | "),
                         ") command=${COMP_WORDS[i]}; break ;; esac\n  done\n");
  // bash makes a word of the "=" in --option=value.
  return absl::StrCat("# Completion of ", program, " for bash.\n", function,
                      "() {\n"
                      "  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
                      "  local command='' words i\n"
                      "  COMPREPLY=()\n",
                      find_command,
                      "  if [[ $cur == '=' ]]; then cur=''\n"
                      "  elif [[ $prev == '=' ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi\n"
                      "  case $command:$prev in\n",
                      values, "    *)\n      case $command in\n", words,
                      "      esac ;;\n"
                      "  esac\n"
                      "  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
                      "}\n"
                      "complete -o bashdefault -o default -F ",
                      function, " ", program, "\n");
}

// Between single quotes, and between what zsh's _arguments gives a meaning.
std::string ZshText(const std::string& text) {
  return absl::StrReplaceAll(
      text, {{"'", "'\\''"}, {"[", "\\["}, {"]", "\\]"}, {":", "\\:"}, {"\\", "\\\\"}});
}

std::string ZshFlags(const Command& command, const std::string& indent) {
  std::string lines;
  for (const Flag& flag : command.flags) {
    const std::string equals = flag.takes_value && flag.name.rfind("--", 0) == 0 ? "=" : "";
    absl::StrAppend(&lines, indent, "'", flag.name, equals, "[", ZshText(flag.help), "]");
    if (!flag.choices.empty()) {
      absl::StrAppend(&lines, ":value:(", absl::StrJoin(flag.choices, " "), ")");
    } else if (flag.takes_value) {
      absl::StrAppend(&lines, ":value:_files");
    }
    absl::StrAppend(&lines, "' \\\n");
  }
  return lines;
}

std::string ZshScript(const std::string& program, const std::vector<Command>& commands) {
  const std::string begin =
      absl::StrCat("#compdef ", program, "\n# Completion of ", program, " for zsh.\n");
  if (commands.size() == 1) {
    return absl::StrCat(begin, "_arguments \\\n", ZshFlags(commands[0], "  "),
                        "  '*:file:_files'\n");
  }
  std::string names, cases;
  for (size_t i = 1; i < commands.size(); ++i) {
    absl::StrAppend(&names, i > 1 ? " " : "", commands[i].name, "\\:\"",
                    absl::StrReplaceAll(ZshText(commands[i].help), {{"\"", "\\\""}}), "\"");
    absl::StrAppend(&cases, "  ", commands[i].name, ")\n    _arguments \\\n",
                    ZshFlags(commands[i], "      "), "      '*:file:_files' ;;\n");
  }
  return absl::StrCat(begin,
                      "local context state state_descr line\n"
                      "typeset -A opt_args\n"
                      "_arguments -C \\\n",
                      ZshFlags(commands[0], "  "), "  '1:command:((", names,
                      "))' \\\n"
                      "  '*::argument:->argument'\n"
                      "[[ $state == argument ]] || return\n"
                      "case $line[1] in\n",
                      cases, "esac\n");
}

std::string FishScript(const std::string& program, const std::vector<Command>& commands) {
  const std::string names = absl::StrJoin(SubcommandNames(commands), " ");
  const auto quoted = [](const std::string& text) {
    return absl::StrCat("'", absl::StrReplaceAll(text, {{"\\", "\\\\"}, {"'", "\\'"}}), "'");
  };
  std::string script = absl::StrCat("# Completion of ", program, " for fish.\n");
  for (const Command& command : commands) {
    std::string line = absl::StrCat("complete -c ", program);
    if (command.name.empty() && !names.empty()) {
      absl::StrAppend(&line, " -n 'not __fish_seen_subcommand_from ", names, "'");
    } else if (!command.name.empty()) {
      absl::StrAppend(&script, line, " -n 'not __fish_seen_subcommand_from ", names, "' -f -a ",
                      command.name, " -d ", quoted(command.help), "\n");
      absl::StrAppend(&line, " -n '__fish_seen_subcommand_from ", command.name, "'");
    }
    for (const Flag& flag : command.flags) {
      const bool is_long = flag.name.rfind("--", 0) == 0;
      absl::StrAppend(&script, line, is_long ? " -l " : " -s ", flag.name.substr(is_long ? 2 : 1),
                      !flag.choices.empty() ? " -x -a "
                      : flag.takes_value    ? " -r"
                                            : "",
                      flag.choices.empty() ? "" : quoted(absl::StrJoin(flag.choices, " ")));
      if (!flag.help.empty()) absl::StrAppend(&script, " -d ", quoted(flag.help));
      absl::StrAppend(&script, "\n");
    }
  }
  return script;
}

}  // namespace

std::vector<std::string> CompletionShells() { return {"bash", "zsh", "fish"}; }

std::string CompletionScript(const CLI::App& app, absl::string_view shell) {
  PKV_CHECK(!app.get_name().empty());
  const std::vector<Command> commands = Commands(app);
  if (shell == "bash") return BashScript(app.get_name(), commands);
  if (shell == "zsh") return ZshScript(app.get_name(), commands);
  PKV_CHECK(shell == "fish", shell);
  return FishScript(app.get_name(), commands);
}

}  // namespace pkv
