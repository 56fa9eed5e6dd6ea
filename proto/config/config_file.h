#ifndef PKV_PROTO_CONFIG_CONFIG_FILE_H_
#define PKV_PROTO_CONFIG_CONFIG_FILE_H_

// A file of settings: one YAML mapping from option names to scalars.

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace pkv {

struct FileEntry {
  std::string key;
  std::string value;  // as written, without quotes; what type it has is for the option to say
  int line = 0;       // from 1
};

struct FileProblem {
  std::string what;
  int line = 0;  // from 1
};

struct ConfigFile {
  // Each in the file's order; of a key that is there more than once, the first.
  std::vector<FileEntry> entries;
  std::vector<FileProblem> problems;
};

// The longest file that is read: a setting for every option takes a hundredth of it.
inline constexpr size_t kConfigFileBytesMax = size_t{1} << 20;

//   NotFound         there is no such file
//   InvalidArgument  it cannot be read, or is longer than kConfigFileBytesMax
absl::StatusOr<std::string> ReadConfigText(const std::string& path);

// Reads all of `text`, whatever is wrong on the way: what is no YAML ends it, but a second value of
// a key, a value that is no scalar and a missing value are told and left out. An empty text, or one
// of comments, is a file without settings.
ConfigFile ParseConfigFile(const std::string& text);

}  // namespace pkv

#endif  // PKV_PROTO_CONFIG_CONFIG_FILE_H_
