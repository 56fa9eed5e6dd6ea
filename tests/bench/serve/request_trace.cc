#include "tests/bench/serve/request_trace.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"
#include "tests/bench/serve/length_distribution.h"

namespace pkv {
namespace {

using Json = nlohmann::json;

absl::StatusOr<int> LengthOf(const Json& json, const char* field) {
  const auto found = json.find(field);
  if (found == json.end() || !found->is_number_unsigned() || *found < 1 ||
      *found > kMaxRequestTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is no number in 1..", kMaxRequestTokens));
  }
  return found->get<int>();
}

absl::StatusOr<TraceRequest> ParseRequest(const std::string& line) {
  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError("not a JSON object");
  TraceRequest request;
  const auto time = json.find("timestamp");
  if (time == json.end() || !time->is_number() || *time < 0) {
    return absl::InvalidArgumentError("timestamp is no number >= 0");
  }
  request.arrival_s = time->get<double>() / 1000;
  PKV_ASSIGN_OR_RETURN(request.prompt_tokens, LengthOf(json, "input_length"));
  PKV_ASSIGN_OR_RETURN(request.output_tokens, LengthOf(json, "output_length"));
  const auto ids = json.find("hash_ids");
  if (ids == json.end() || !ids->is_array()) {
    return absl::InvalidArgumentError("hash_ids is no array");
  }
  for (const Json& id : *ids) {
    if (!id.is_number_unsigned()) return absl::InvalidArgumentError("hash_ids has what is no id");
    request.block_ids.push_back(id.get<uint64_t>());
  }
  const size_t wanted = (request.prompt_tokens + kTraceBlockTokens - 1) / kTraceBlockTokens;
  if (request.block_ids.size() < wanted) {
    return absl::InvalidArgumentError(absl::StrCat(request.block_ids.size(), " hash_ids for ",
                                                   request.prompt_tokens, " tokens, ", wanted,
                                                   " are needed"));
  }
  return request;
}

}  // namespace

absl::StatusOr<std::vector<TraceRequest>> ParseTrace(std::istream& lines) {
  std::vector<TraceRequest> trace;
  double first_s = 0;
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.empty()) continue;
    absl::StatusOr<TraceRequest> request = ParseRequest(line);
    absl::Status status = request.status();
    if (trace.empty() && status.ok()) first_s = request->arrival_s;
    if (status.ok() &&
        request->arrival_s - first_s < (trace.empty() ? 0 : trace.back().arrival_s)) {
      status = absl::InvalidArgumentError("its timestamp is before the one above");
    }
    if (!status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, " of the trace: ", status.message()));
    }
    request->arrival_s -= first_s;
    trace.push_back(*std::move(request));
  }
  if (trace.empty()) return absl::InvalidArgumentError("the trace has no request");
  return trace;
}

absl::StatusOr<std::vector<TraceRequest>> ReadTrace(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read trace ", path));
  return ParseTrace(file);
}

}  // namespace pkv
