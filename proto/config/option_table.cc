#include "proto/config/option_table.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/base/log.h"
#include "proto/config/known_names.h"
#include "proto/config/value_text.h"

namespace pkv {
namespace {

bool IsOptionName(absl::string_view name) {
  return !name.empty() && name.front() != '-' && name.back() != '-' &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-';
         });
}

std::string IntegerText(int number) { return absl::StrCat(number); }

// InvalidArgument when `value` is not within `bounds`.
template <typename T>
absl::Status CheckBounds(const T& value, const Bounds<T>& bounds, std::string (*text_of)(T)) {
  if (bounds.min && value < *bounds.min) {
    return absl::InvalidArgumentError(
        absl::StrCat(text_of(value), " is below ", text_of(*bounds.min)));
  }
  if (bounds.max && value > *bounds.max) {
    return absl::InvalidArgumentError(
        absl::StrCat(text_of(value), " is above ", text_of(*bounds.max)));
  }
  return absl::OkStatus();
}

// "DURATION 100ms..1h"
template <typename T>
std::string TypeText(absl::string_view type, const Bounds<T>& bounds, std::string (*text_of)(T)) {
  if (!bounds.min && !bounds.max) return std::string(type);
  return absl::StrCat(type, " ", bounds.min ? text_of(*bounds.min) : "", "..",
                      bounds.max ? text_of(*bounds.max) : "");
}

template <typename T>
OptionTable::Option MakeBounded(OptionInfo info, absl::string_view type, T& value, Bounds<T> bounds,
                                std::string (*text_of)(T),
                                std::function<absl::StatusOr<T>(absl::string_view)> parse) {
  return {.info = std::move(info),
          .type = TypeText(type, bounds, text_of),
          .set =
              [&value, bounds, text_of, parse](absl::string_view text) {
                const absl::StatusOr<T> parsed = parse(text);
                if (!parsed.ok()) return parsed.status();
                if (absl::Status status = CheckBounds(*parsed, bounds, text_of); !status.ok())
                  return status;
                value = *parsed;
                return absl::OkStatus();
              },
          .text = [&value, text_of] { return text_of(value); }};
}

}  // namespace

void OptionTable::Add(Option option) {
  const std::string& name = option.info.name;
  PKV_CHECK(IsOptionName(name), "option '", name, "'");
  PKV_CHECK(Find(name) == nullptr, "option '", name, "' is there already");
  option.variable = VariableOf(name);
  PKV_CHECK(!IsServiceVariable(option.variable), "a Service may set ", option.variable);
  option.default_text = option.text();
  options_.push_back(std::move(option));
}

void OptionTable::AddText(OptionInfo info, std::string& value) {
  Add({.info = std::move(info),
       .type = "TEXT",
       .is_text = true,
       .set =
           [&value](absl::string_view text) {
             value = std::string(text);
             return absl::OkStatus();
           },
       .text = [&value] { return value; }});
}

void OptionTable::AddPath(OptionInfo info, std::string& value) {
  AddText(std::move(info), value);
  options_.back().type = "PATH";
}

void OptionTable::AddSwitch(OptionInfo info, bool& value) {
  Add({.info = std::move(info),
       .type = "true|false",
       .is_switch = true,
       .set =
           [&value](absl::string_view text) {
             const absl::StatusOr<bool> parsed = ParseSwitch(text);
             if (parsed.ok()) value = *parsed;
             return parsed.status();
           },
       .text = [&value]() -> std::string { return value ? "true" : "false"; }});
}

void OptionTable::AddInteger(OptionInfo info, int& value, Bounds<int> bounds) {
  Add(MakeBounded<int>(std::move(info), "INTEGER", value, bounds, IntegerText,
                       [](absl::string_view text) -> absl::StatusOr<int> {
                         const absl::StatusOr<int64_t> parsed = ParseInteger(text);
                         if (!parsed.ok()) return parsed.status();
                         const auto narrow = static_cast<int>(*parsed);
                         if (narrow != *parsed) {
                           return absl::InvalidArgumentError(
                               absl::StrCat("\"", text, "\" does not fit in 32 bits"));
                         }
                         return narrow;
                       }));
}

void OptionTable::AddNumber(OptionInfo info, double& value, Bounds<double> bounds) {
  Add(MakeBounded<double>(std::move(info), "NUMBER", value, bounds, NumberText, ParseNumber));
}

void OptionTable::AddSize(OptionInfo info, uint64_t& value, Bounds<uint64_t> bounds) {
  Add(MakeBounded<uint64_t>(std::move(info), "SIZE", value, bounds, SizeText, ParseSize));
}

void OptionTable::AddDuration(OptionInfo info, absl::Duration& value,
                              Bounds<absl::Duration> bounds) {
  Add(MakeBounded<absl::Duration>(std::move(info), "DURATION", value, bounds, DurationText,
                                  ParseDurationText));
}

void OptionTable::AddWord(OptionInfo info, std::string& value, std::vector<std::string> choices) {
  std::vector<std::pair<std::string, std::string>> pairs;
  for (const std::string& choice : choices) pairs.emplace_back(choice, choice);
  AddChoice<std::string>(std::move(info), value, std::move(pairs));
}

void OptionTable::AddChoice(OptionInfo info, std::vector<std::string> words,
                            std::function<void(size_t)> set_index, std::function<size_t()> index) {
  PKV_CHECK(index() < words.size(), "the default of '", info.name, "' is no choice");
  Add({.info = std::move(info),
       .type = absl::StrCat("{", absl::StrJoin(words, ","), "}"),
       .set =
           [words, set_index](absl::string_view text) {
             const auto found = std::find(words.begin(), words.end(), text);
             if (found == words.end()) {
               return absl::InvalidArgumentError(absl::StrCat("\"", text, "\" is none of ",
                                                              absl::StrJoin(words, ", "),
                                                              DidYouMean(text, words)));
             }
             set_index(found - words.begin());
             return absl::OkStatus();
           },
       .text = [words, index] { return words[index()]; }});
}

const OptionTable::Option* OptionTable::Find(absl::string_view name) const {
  const auto found = std::find_if(options_.begin(), options_.end(), [name](const Option& option) {
    return option.info.name == name;
  });
  return found == options_.end() ? nullptr : &*found;
}

std::vector<std::string> OptionTable::names() const {
  std::vector<std::string> found;
  for (const Option& option : options_) found.push_back(option.info.name);
  return found;
}

std::vector<std::string> OptionTable::variables() const {
  std::vector<std::string> found;
  for (const Option& option : options_) found.push_back(option.variable);
  return found;
}

}  // namespace pkv
