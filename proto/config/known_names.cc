#include "proto/config/known_names.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace pkv {
namespace {

// Longer ones are nobody's misspelling; the table below has a cell for each pair of characters.
constexpr size_t kNameCharsMax = 128;

// Edits from a to b, a swap of neighbours counted as one (optimal string alignment).
size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<std::vector<size_t>> edits(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        edits[i][j] = i + j;
        continue;
      }
      const size_t replaced = edits[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      edits[i][j] = std::min({replaced, edits[i - 1][j] + 1, edits[i][j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        edits[i][j] = std::min(edits[i][j], edits[i - 2][j - 2] + 1);
      }
    }
  }
  return edits[a.size()][b.size()];
}

}  // namespace

std::string NearestName(absl::string_view name, const std::vector<std::string>& known) {
  if (name.size() > kNameCharsMax) return "";
  std::string nearest;
  size_t fewest = std::max<size_t>(1, name.size() / 3) + 1;
  for (const std::string& candidate : known) {
    const size_t edits = EditDistance(name, candidate);
    if (edits >= fewest) continue;
    fewest = edits;
    nearest = candidate;
  }
  return nearest;
}

std::string DidYouMean(absl::string_view name, const std::vector<std::string>& known) {
  const std::string nearest = NearestName(name, known);
  return nearest.empty() ? "" : absl::StrCat(": did you mean '", nearest, "'?");
}

std::string VariableOf(absl::string_view option) {
  return absl::StrCat("PKV_", absl::AsciiStrToUpper(absl::StrReplaceAll(option, {{"-", "_"}})));
}

Environment ReadEnvironment(const char* const* variables) {
  Environment found;
  for (; *variables != nullptr; ++variables) {
    const absl::string_view text = *variables;
    const size_t equals = text.find('=');
    if (!absl::StartsWith(text, "PKV_") || equals == absl::string_view::npos) continue;
    if (equals + 1 == text.size()) continue;
    found.emplace(text.substr(0, equals), text.substr(equals + 1));
  }
  return found;
}

bool IsServiceVariable(absl::string_view variable) {
  if (!absl::StartsWith(variable, "PKV_")) return false;
  if (absl::EndsWith(variable, "_SERVICE_HOST") || absl::EndsWith(variable, "_PORT")) return true;
  if (absl::StrContains(variable, "_SERVICE_PORT_")) return true;
  constexpr absl::string_view kPort = "_PORT_";
  const size_t port = variable.find(kPort);
  return port != absl::string_view::npos && port + kPort.size() < variable.size() &&
         absl::ascii_isdigit(variable[port + kPort.size()]);
}

std::vector<std::string> UnknownVariables(const Environment& environment,
                                          const std::vector<std::string>& known) {
  std::vector<std::string> messages;
  for (const auto& [name, value] : environment) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    if (name == "PKV_SOURCE_DIR" || name == "PKV_BINARY_DIR") continue;
    if (absl::StartsWith(name, "PKV_TEST_") || IsServiceVariable(name)) continue;
    messages.push_back(absl::StrCat("environment variable ", name,
                                    " is not known here and has no "
                                    "effect",
                                    DidYouMean(name, known)));
  }
  return messages;
}

}  // namespace pkv
