#include "proto/config/config_file.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace pkv {
namespace {

// yaml-cpp counts lines from 0, and has -1 for what stands nowhere.
int LineOf(const YAML::Mark& mark) { return mark.line < 0 ? 1 : mark.line + 1; }

class Reader {
 public:
  void ReadDocument(const YAML::Node& document) {
    if (document.IsNull()) return;
    if (!document.IsMap()) {
      AddProblem(LineOf(document.Mark()), "the file is no mapping of 'option: value' lines");
      return;
    }
    for (const auto& pair : document) ReadPair(pair.first, pair.second);
  }

  void AddProblem(int line, const std::string& what) { file_.problems.push_back({what, line}); }

  ConfigFile Take() { return std::move(file_); }

 private:
  void ReadPair(const YAML::Node& key, const YAML::Node& value) {
    const int line = LineOf(key.Mark());
    if (!key.IsScalar()) {
      AddProblem(line, "a key is no option's name");
      return;
    }
    const std::string& name = key.Scalar();
    if (const auto [first, is_first] = lines_.emplace(name, line); !is_first) {
      AddProblem(line, absl::StrCat("'", name, "' is set on line ", first->second, " already"));
    } else if (value.IsNull()) {
      AddProblem(line, absl::StrCat("'", name, "' has no value; an empty text is \"\""));
    } else if (!value.IsScalar()) {
      AddProblem(line, absl::StrCat("'", name, "' takes one value, not a ",
                                    value.IsMap() ? "mapping" : "list"));
    } else {
      file_.entries.push_back({name, value.Scalar(), line});
    }
  }

  std::map<std::string, int> lines_;
  ConfigFile file_;
};

}  // namespace

absl::StatusOr<std::string> ReadConfigText(const std::string& path) {
  const auto unreadable = [&path](int error) {
    const std::string message = absl::StrCat(path, ": cannot be read: ", std::strerror(error));
    return error == ENOENT ? absl::NotFoundError(message) : absl::InvalidArgumentError(message);
  };
  std::ifstream file(path, std::ios::binary);
  if (!file) return unreadable(errno);
  std::string text(kConfigFileBytesMax + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  // A folder opens and does not read.
  if (file.bad() || (file.fail() && !file.eof())) return unreadable(EISDIR);
  text.resize(file.gcount());
  if (text.size() > kConfigFileBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": longer than ", kConfigFileBytesMax, " bytes"));
  }
  return text;
}

ConfigFile ParseConfigFile(const std::string& text) {
  Reader reader;
  const int num_lines = static_cast<int>(std::count(text.begin(), text.end(), '\n')) +
                        (absl::EndsWith(text, "\n") ? 0 : 1);
  // The library throws; nothing of it leaves this file.
  try {
    // The mark of a document's end makes an error of a quote that is never closed; without it, the
    // rest of the file would silently be part of that value.
    const std::vector<YAML::Node> documents = YAML::LoadAll(text + "\n...\n");
    if (!documents.empty()) reader.ReadDocument(documents.front());
    if (documents.size() > 1) {
      reader.AddProblem(LineOf(documents[1].Mark()), "a second document; there can be one");
    }
  } catch (const YAML::Exception& error) {
    reader.AddProblem(std::min(LineOf(error.mark), num_lines),
                      absl::StrCat("not YAML: ", error.msg));
  }
  return reader.Take();
}

}  // namespace pkv
