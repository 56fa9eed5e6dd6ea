#include "tests/bench/serve/metrics_page.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace pkv {
namespace {

// Where the name and labels of a line end: at the blank behind them. Label values may hold blanks
// and braces, in quotes, and quotes behind backslashes.
size_t SeriesEnd(absl::string_view line) {
  bool quoted = false;
  for (size_t i = 0; i < line.size(); ++i) {
    if (quoted && line[i] == '\\') {
      ++i;
    } else if (line[i] == '"') {
      quoted = !quoted;
    } else if (line[i] == ' ' && !quoted) {
      return i;
    }
  }
  return absl::string_view::npos;
}

// Of a family's type: `pkv_x_sum` and `pkv_x_count` belong to histogram or summary pkv_x.
bool IsCounter(const std::map<std::string, std::string>& types, const std::string& name) {
  const auto type = types.find(name);
  if (type != types.end()) return type->second == "counter";
  for (const char* ending : {"_sum", "_count"}) {
    const auto family = types.find(std::string(absl::StripSuffix(name, ending)));
    if (family != types.end() && absl::EndsWith(name, ending)) return true;
  }
  return false;
}

bool IsBucket(const std::map<std::string, std::string>& types, const std::string& name) {
  const auto family = types.find(std::string(absl::StripSuffix(name, "_bucket")));
  return absl::EndsWith(name, "_bucket") && family != types.end() && family->second == "histogram";
}

}  // namespace

absl::StatusOr<MetricsPage> MetricsPage::Parse(absl::string_view text) {
  MetricsPage page;
  std::map<std::string, std::string> types;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    line = absl::StripAsciiWhitespace(line);
    if (absl::StartsWith(line, "# TYPE ")) {
      const std::vector<std::string> words = absl::StrSplit(line, ' ');
      if (words.size() == 4) types[words[2]] = words[3];
    }
    if (line.empty() || line[0] == '#') continue;
    const size_t end = SeriesEnd(line);
    Series series;
    // A time may follow the value.
    const std::vector<std::string> numbers =
        end == absl::string_view::npos
            ? std::vector<std::string>{}
            : std::vector<std::string>(absl::StrSplit(line.substr(end), ' ', absl::SkipEmpty()));
    if (numbers.empty() || numbers.size() > 2 || !absl::SimpleAtod(numbers[0], &series.value)) {
      return absl::InvalidArgumentError(absl::StrCat("no line of a metrics page: ", line));
    }
    const std::string key(line.substr(0, end));
    if (IsBucket(types, SeriesName(key))) continue;
    series.is_counter = IsCounter(types, SeriesName(key));
    page.series_[key] = series;
  }
  return page;
}

std::string SeriesName(const std::string& series) { return series.substr(0, series.find('{')); }

std::optional<std::string> SeriesLabel(const std::string& series, const std::string& label) {
  for (const char* before : {"{", ","}) {
    const std::string begin = absl::StrCat(before, label, "=\"");
    const size_t at = series.find(begin);
    if (at == std::string::npos) continue;
    const size_t first = at + begin.size();
    return series.substr(first, series.find('"', first) - first);
  }
  return std::nullopt;
}

void MetricsHistory::Add(const MetricsPage& page) {
  for (const auto& [key, series] : page.series()) {
    const auto [found, is_first] = changes_.try_emplace(key);
    SeriesChange& change = found->second;
    if (is_first) {
      change.is_counter = series.is_counter;
      change.before = series.is_counter && num_pages_ > 0 ? 0 : series.value;
      change.peak = series.value;
    }
    change.after = series.value;
    change.peak = std::max(change.peak, series.value);
  }
  ++num_pages_;
}

}  // namespace pkv
