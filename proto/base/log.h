#ifndef PKV_PROTO_BASE_LOG_H_
#define PKV_PROTO_BASE_LOG_H_

// Structured log lines on stderr (through spdlog) and checks of our own invariants.

#include <initializer_list>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace pkv {

enum class LogLevel { kDebug, kInfo, kWarning, kError };
enum class LogFormat { kText, kJson };

// One key and its value, both printed as text. Never a full key, token ids or payload bytes.
struct LogField {
  LogField(absl::string_view key_in, const absl::AlphaNum& value_in)
      : key(key_in), value(value_in.Piece()) {}
  std::string key;
  std::string value;
};

// Process-wide; call once at start. Default: kInfo, kText.
void ConfigureLog(LogLevel level, LogFormat format);

// From here on, whatever threads are logging. Thread-safe.
void SetLogLevel(LogLevel level);

// One line, whatever the values hold: JSON escapes them, and bytes that are no UTF-8 become U+FFFD;
// text quotes a value in the same way unless it is plain (printable ASCII without space, '"', '=').
// Thread-safe. Example: Log(LogLevel::kInfo, "listening", {{"address", address}, {"port", port}});
void Log(LogLevel level, absl::string_view event, std::initializer_list<LogField> fields = {});

// Prints and aborts. Used by PKV_CHECK only.
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition,
                              const std::string& values);

}  // namespace pkv

// A broken invariant of ours: prints the values and aborts. Input from outside never reaches one.
// Example: PKV_CHECK(used <= capacity, "used ", used, " capacity ", capacity);
#define PKV_CHECK(condition, ...)                                      \
  do {                                                                 \
    if (!(condition)) [[unlikely]]                                     \
      ::pkv::CheckFailed(__FILE__, __LINE__, #condition,               \
                         absl::StrCat("" __VA_OPT__(, ) __VA_ARGS__)); \
  } while (false)

#endif  // PKV_PROTO_BASE_LOG_H_
