#include "proto/config/config_sources.h"

#include <algorithm>
#include <span>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "proto/base/checksum.h"
#include "proto/base/log.h"
#include "proto/config/config_file.h"

namespace pkv {
namespace {

// Sets values from sources in the order of its calls: the last one counts.
class Loader {
 public:
  explicit Loader(const OptionTable& table) : table_(table) {
    for (const std::string& name : table.names()) loaded_.origins[name] = "default";
  }

  void TakeFile(const std::string& file) {
    absl::string_view path = file;
    const bool may_be_missing = absl::ConsumePrefix(&path, "-");
    if (path.empty()) return;
    const absl::StatusOr<std::string> text = ReadConfigText(std::string(path));
    if (!text.ok()) {
      if (may_be_missing && absl::IsNotFound(text.status())) return;
      loaded_.problems.emplace_back(text.status().message());
      return;
    }
    loaded_.file = std::string(path);
    ConfigFile parsed = ParseConfigFile(*text);
    std::vector<FileProblem>& problems = parsed.problems;
    for (const FileEntry& entry : parsed.entries) {
      const OptionTable::Option* option = table_.Find(entry.key);
      const absl::Status status =
          option == nullptr
              ? absl::NotFoundError(absl::StrCat("unknown option '", entry.key, "'",
                                                 DidYouMean(entry.key, table_.names())))
              : option->set(entry.value);
      if (status.ok()) {
        loaded_.origins[entry.key] = absl::StrCat("file ", path, ":", entry.line);
      } else {
        const std::string name = option == nullptr ? "" : absl::StrCat(entry.key, ": ");
        problems.push_back({absl::StrCat(name, status.message()), entry.line});
      }
    }
    std::stable_sort(problems.begin(), problems.end(),
                     [](const FileProblem& a, const FileProblem& b) { return a.line < b.line; });
    for (const FileProblem& problem : problems) {
      loaded_.problems.push_back(absl::StrCat(path, ":", problem.line, ": ", problem.what));
    }
  }

  void TakeEnvironment(const Environment& environment) {
    for (const OptionTable::Option& option : table_.options()) {
      const auto found = environment.find(option.variable);
      if (found == environment.end()) continue;
      const std::string origin = absl::StrCat("environment ", option.variable);
      Set(option, found->second, origin, origin);
    }
  }

  void TakeFlags(const std::map<std::string, std::string>& flags) {
    for (const auto& [name, text] : flags) {
      const OptionTable::Option* option = table_.Find(name);
      PKV_CHECK(option != nullptr, name);
      Set(*option, text, absl::StrCat("--", name), "flag");
    }
  }

  LoadedConfig Take() { return std::move(loaded_); }

 private:
  void Set(const OptionTable::Option& option, const std::string& text, const std::string& place,
           const std::string& origin) {
    if (const absl::Status status = option.set(text); !status.ok()) {
      loaded_.problems.push_back(absl::StrCat(place, ": ", status.message()));
    } else {
      loaded_.origins[option.info.name] = origin;
    }
  }

  const OptionTable& table_;
  LoadedConfig loaded_;
};

// A double-quoted scalar (YAML 1.2, section 7.3.1).
std::string Quoted(absl::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      quoted.push_back('\\');
      quoted.push_back(c);
    } else if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) {
      absl::StrAppend(&quoted, "\\x", absl::Hex(static_cast<unsigned char>(c), absl::kZeroPad2));
    } else {
      quoted.push_back(c);
    }
  }
  return quoted + "\"";
}

std::string CellText(absl::string_view text) { return absl::StrReplaceAll(text, {{"|", "\\|"}}); }

}  // namespace

LoadedConfig LoadConfig(const OptionTable& table, const ConfigInput& input) {
  Loader loader(table);
  loader.TakeFile(input.file);
  loader.TakeEnvironment(input.environment);
  loader.TakeFlags(input.flags);
  return loader.Take();
}

std::string ConfigYaml(const OptionTable& table, const Origins& origins) {
  std::string yaml;
  for (const OptionTable::Option& option : table.options()) {
    const std::string text = option.text();
    absl::StrAppend(&yaml, "# ", option.info.help, "\n", option.info.name, ": ",
                    option.is_text ? Quoted(text) : text, "  # ", origins.at(option.info.name),
                    "\n");
  }
  return yaml;
}

std::string ConfigTableMarkdown(const OptionTable& table) {
  std::string rows;
  for (const OptionTable::Option& option : table.options()) {
    absl::StrAppend(&rows, "| `", option.info.name, "` | `", option.variable, "` | ",
                    CellText(option.type), " | ",
                    option.default_text.empty() ? "" : absl::StrCat("`", option.default_text, "`"),
                    " | ", option.info.reloadable ? "SIGHUP" : "restart", " | ",
                    CellText(option.info.help), " |\n");
  }
  return rows;
}

uint32_t ConfigHash(const OptionTable& table) {
  std::string text;
  for (const OptionTable::Option& option : table.options()) {
    absl::StrAppend(&text, option.info.name, "=", Quoted(option.text()), "\n");
  }
  return Crc32c(std::as_bytes(std::span(text)));
}

ReloadResult TakeOver(const OptionTable& running, const OptionTable& fresh,
                      const std::function<absl::Status()>& check) {
  struct Change {
    const OptionTable::Option* option;
    std::string before, after;
  };
  std::vector<Change> changes;
  for (const OptionTable::Option& option : running.options()) {
    const OptionTable::Option* other = fresh.Find(option.info.name);
    PKV_CHECK(other != nullptr, option.info.name);
    const std::string before = option.text(), after = other->text();
    if (before == after) continue;
    changes.push_back({&option, before, after});
    if (option.info.reloadable) PKV_CHECK(option.set(after).ok(), option.info.name, " ", after);
  }
  if (const absl::Status status = check(); !status.ok()) {
    for (const Change& change : changes) {
      if (!change.option->info.reloadable) continue;
      PKV_CHECK(change.option->set(change.before).ok(), change.option->info.name);
    }
    Log(LogLevel::kError, "configuration refused, nothing changed", {{"why", status.message()}});
    return ReloadResult::kFailure;
  }
  bool is_partial = false;
  for (const Change& change : changes) {
    if (change.option->info.reloadable) {
      Log(LogLevel::kInfo, "setting changed",
          {{"option", change.option->info.name}, {"from", change.before}, {"to", change.after}});
    } else {
      is_partial = true;
      Log(LogLevel::kWarning, "setting needs a restart, kept",
          {{"option", change.option->info.name}, {"kept", change.before}, {"file", change.after}});
    }
  }
  Log(LogLevel::kInfo, "configuration loaded again", {{"changes", changes.size()}});
  return is_partial ? ReloadResult::kPartial : ReloadResult::kSuccess;
}

}  // namespace pkv
