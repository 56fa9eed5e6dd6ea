#include "proto/base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "absl/strings/ascii.h"

namespace pkv {
namespace {

std::atomic<LogFormat> g_format{LogFormat::kText};

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

spdlog::logger& Logger() {
  // Never destroyed: threads may log while static objects are.
  static spdlog::logger* const logger = [] {
    auto* made = new spdlog::logger("pkv", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %l %v", spdlog::pattern_time_type::utc);
    made->flush_on(spdlog::level::info);
    return made;
  }();
  return *logger;
}

// Bytes of the UTF-8 sequence that `text` starts with (RFC 3629, section 4), or 0 when it starts
// with none. REQUIRES: not empty.
size_t Utf8SequenceBytes(absl::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t num_bytes = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < num_bytes) return 0;
  for (size_t i = 1; i < num_bytes; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  const unsigned char second = byte(1);
  const bool is_overlong = (lead == 0xe0 && second < 0xa0) || (lead == 0xf0 && second < 0x90);
  const bool is_surrogate = lead == 0xed && second > 0x9f;
  const bool is_beyond = lead == 0xf4 && second > 0x8f;
  return is_overlong || is_surrogate || is_beyond ? 0 : num_bytes;
}

// The JSON string escapes of RFC 8259, section 7.
void AppendJsonString(absl::string_view text, std::string& out) {
  out.push_back('"');
  while (!text.empty()) {
    const char c = text[0];
    const size_t num_bytes = Utf8SequenceBytes(text);
    if (num_bytes == 0) {
      out.append("\\ufffd");
    } else if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (num_bytes == 1 && absl::ascii_iscntrl(static_cast<unsigned char>(c))) {
      absl::StrAppend(&out, "\\u", absl::Hex(static_cast<unsigned char>(c), absl::kZeroPad4));
    } else {
      out.append(text.data(), num_bytes);
    }
    text.remove_prefix(std::max<size_t>(num_bytes, 1));
  }
  out.push_back('"');
}

// Printable ASCII that cannot be taken for the syntax around it.
bool IsPlain(absl::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return c > ' ' && c <= '~' && c != '"' && c != '=';
  });
}

}  // namespace

void ConfigureLog(LogLevel level, LogFormat format) {
  g_format = format;
  Logger().set_level(ToSpdlog(level));
  Logger().set_pattern(format == LogFormat::kJson
                           ? R"({"time":"%Y-%m-%dT%H:%M:%S.%eZ","level":"%l",%v})"
                           : "%Y-%m-%dT%H:%M:%S.%eZ %l %v",
                       spdlog::pattern_time_type::utc);
}

void SetLogLevel(LogLevel level) { Logger().set_level(ToSpdlog(level)); }

void Log(LogLevel level, absl::string_view event, std::initializer_list<LogField> fields) {
  if (!Logger().should_log(ToSpdlog(level))) return;
  std::string line;
  if (g_format.load() == LogFormat::kJson) {
    line = "\"event\":";
    AppendJsonString(event, line);
    for (const LogField& field : fields) {
      line.push_back(',');
      AppendJsonString(field.key, line);
      line.push_back(':');
      AppendJsonString(field.value, line);
    }
  } else {
    line = std::string(event);
    for (const LogField& field : fields) {
      absl::StrAppend(&line, " ", field.key, "=");
      if (IsPlain(field.value)) {
        line += field.value;
      } else {
        AppendJsonString(field.value, line);
      }
    }
  }
  Logger().log(ToSpdlog(level), "{}", line);
}

void CheckFailed(const char* file, int line, const char* condition, const std::string& values) {
  std::fprintf(stderr, "%s:%d: check failed: %s %s\n", file, line, condition, values.c_str());
  std::abort();
}

}  // namespace pkv
