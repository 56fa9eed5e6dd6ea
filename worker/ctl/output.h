#ifndef PKV_WORKER_CTL_OUTPUT_H_
#define PKV_WORKER_CTL_OUTPUT_H_

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "pkv/block/object_key.h"

namespace pkv {

// 0 ok, 1 failure, 2 usage, 3 not found, 4 unavailable or too late, 5 integrity.
int ExitCodeOf(const absl::Status& status);

// Prints an error to stderr and returns its exit code.
int Fail(const absl::Status& status);

// The one JSON document of a command, on stdout.
void PrintJson(const nlohmann::ordered_json& document);

// "default:0123456789abcdef", as --variant takes it.
std::string VariantText(const Variant& variant);

// "1.25 MB": decimal units, three digits.
std::string FormatBytes(uint64_t bytes);

// "45 s", "2:05", "1:02:05": rounded to seconds; 0 s for what is negative or not finite.
std::string FormatSeconds(double seconds);

// A line on stderr that overwrites itself, with elapsed and remaining time. Silent unless stderr is
// a terminal, TERM is not "dumb" and `enabled`. Thread-compatible.
class ProgressLine {
 public:
  ProgressLine(absl::string_view label, bool enabled);
  ~ProgressLine();
  void Update(int done, int total);

 private:
  std::string label_;
  bool visible_;
  double start_;
};

}  // namespace pkv

#endif  // PKV_WORKER_CTL_OUTPUT_H_
