#ifndef PKV_PROTO_CONFIG_OPTION_TABLE_H_
#define PKV_PROTO_CONFIG_OPTION_TABLE_H_

// The options of a program, each declared once: from here come its flag, its environment variable,
// its key in the file, --help, the shells' completions and deploy/CONFIGURATION.md.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace pkv {

// "drain-timeout" is --drain-timeout, PKV_DRAIN_TIMEOUT and the key drain-timeout of the file.
struct OptionInfo {
  std::string name;
  std::string help;  // one line, no full stop
  // Whether a running process takes another value at SIGHUP: only when that has its effect.
  bool reloadable = false;
};

// Both inclusive; absent: any value of the type.
template <typename T>
struct Bounds {
  std::optional<T> min = {}, max = {};
};

// Thread-compatible. What the options are bound to outlives the table and stays where it is; its
// values at the time of Add are the defaults.
class OptionTable {
 public:
  struct Option {
    OptionInfo info;
    std::string variable = {};  // "PKV_DRAIN_TIMEOUT"
    std::string type;           // "DURATION 0s..1h", as help shows it
    bool is_switch = false;
    bool is_text = false;  // takes any text: printed in quotes
    std::string default_text = {};
    // Reads `text` and, when it is allowed, sets the value. InvalidArgument names text and limit.
    std::function<absl::Status(absl::string_view text)> set;
    // The value now, as `set` reads it.
    std::function<std::string()> text;
  };

  OptionTable() = default;
  OptionTable(const OptionTable&) = delete;
  OptionTable& operator=(const OptionTable&) = delete;

  // REQUIRES (each): lower case words joined by '-', not in the table, and no name that a Service
  // of Kubernetes may give a variable ("health-port": IsServiceVariable).
  void AddText(OptionInfo info, std::string& value);
  // A path: completed as one.
  void AddPath(OptionInfo info, std::string& value);
  void AddSwitch(OptionInfo info, bool& value);
  void AddInteger(OptionInfo info, int& value, Bounds<int> bounds);
  void AddNumber(OptionInfo info, double& value, Bounds<double> bounds);
  void AddSize(OptionInfo info, uint64_t& value, Bounds<uint64_t> bounds);
  void AddDuration(OptionInfo info, absl::Duration& value, Bounds<absl::Duration> bounds);
  // One of `choices`.
  void AddWord(OptionInfo info, std::string& value, std::vector<std::string> choices);
  // The same, each word with the value it stands for. REQUIRES: the default is one of them.
  template <typename T>
  void AddChoice(OptionInfo info, T& value, std::vector<std::pair<std::string, T>> choices);

  // In the order of their addition.
  const std::vector<Option>& options() const { return options_; }
  // Null when there is none of this name.
  const Option* Find(absl::string_view name) const;
  std::vector<std::string> names() const;
  std::vector<std::string> variables() const;

 private:
  // Checks and completes `option`.
  void Add(Option option);
  void AddChoice(OptionInfo info, std::vector<std::string> words,
                 std::function<void(size_t)> set_index, std::function<size_t()> index);

  std::vector<Option> options_;
};

template <typename T>
void OptionTable::AddChoice(OptionInfo info, T& value,
                            std::vector<std::pair<std::string, T>> choices) {
  std::vector<std::string> words;
  for (const auto& choice : choices) words.push_back(choice.first);
  AddChoice(
      std::move(info), std::move(words),
      [&value, choices](size_t index) { value = choices[index].second; },
      [&value, choices] {
        size_t index = 0;
        while (index < choices.size() && !(choices[index].second == value)) ++index;
        return index;
      });
}

}  // namespace pkv

#endif  // PKV_PROTO_CONFIG_OPTION_TABLE_H_
