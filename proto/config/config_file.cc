#include "proto/config/config_file.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace pkv {
namespace {

// Where a document starts, and nothing of what it holds.
struct DocumentStart final : YAML::EventHandler {
  void OnDocumentStart(const YAML::Mark& at) override { mark = at; }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t,
                const std::string&) override {}
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {}
  void OnMapEnd() override {}

  YAML::Mark mark = YAML::Mark::null_mark();
};

class Reader {
 public:
  explicit Reader(const std::string& text)
      : num_lines_(static_cast<int>(std::count(text.begin(), text.end(), '\n')) +
                   (absl::EndsWith(text, "\n") ? 0 : 1)) {}

  // Of the file: yaml-cpp counts from 0, has -1 for what stands nowhere, and sees a line more.
  int LineOf(const YAML::Mark& mark) const { return std::clamp(mark.line + 1, 1, num_lines_); }

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

  const int num_lines_;
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
  Reader reader(text);
  // The library throws; nothing of it leaves this file.
  try {
    // The mark of a document's end makes an error of a quote that is never closed; without it, the
    // rest of the file would silently be part of that value.
    const std::string ended = text + "\n...\n";
    reader.ReadDocument(YAML::Load(ended));
    // Load reads one document. LoadAll would read all, but some broken texts are documents without
    // an end to it.
    std::istringstream stream(ended);
    YAML::Parser parser(stream);
    DocumentStart start;
    if (parser.HandleNextDocument(start) && parser.HandleNextDocument(start)) {
      reader.AddProblem(reader.LineOf(start.mark), "a second document begins; there can be one");
    }
  } catch (const YAML::Exception& error) {
    reader.AddProblem(reader.LineOf(error.mark), absl::StrCat("not YAML: ", error.msg));
  }
  return reader.Take();
}

}  // namespace pkv
