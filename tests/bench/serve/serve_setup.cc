#include "tests/bench/serve/serve_setup.h"

#include <deque>
#include <functional>
#include <future>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// What a prefill worker runs at once, unless told otherwise.
constexpr size_t kPrefillsAtOnce = 4;

// A byte is at most a token: pieces fit every model's context.
constexpr size_t kPieceBytes = 1024;

// Calls take(i, response) for i = 0..count - 1, in order.
absl::Status PrefillEach(WorkerCalls& calls, int64_t count,
                         const std::function<v1::PrefillRequest(int64_t)>& request_of,
                         const std::function<absl::Status(v1::PrefillResponse)>& take) {
  std::deque<std::future<absl::StatusOr<v1::PrefillResponse>>> under_way;
  absl::Status status;
  int64_t sent = 0;
  while ((status.ok() && sent < count) || !under_way.empty()) {
    if (status.ok() && sent < count && under_way.size() < kPrefillsAtOnce) {
      under_way.push_back(calls.PrefillLater(sent, request_of(sent)));
      ++sent;
      continue;
    }
    // After an error the others are waited for: the callers' calls end before they do.
    absl::StatusOr<v1::PrefillResponse> response = under_way.front().get();
    under_way.pop_front();
    if (!status.ok()) continue;
    status = response.ok() ? take(*std::move(response)) : response.status();
  }
  if (status.ok()) return status;
  return {status.code(), absl::StrCat("a prefill before the load: ", status.message())};
}

}  // namespace

absl::StatusOr<TokenSource> TokenizeText(WorkerCalls& calls, const std::string& text,
                                         const std::string& preset) {
  const std::vector<std::string> pieces = SplitText(text, kPieceBytes);
  PKV_CHECK(!pieces.empty(), "an empty text");
  std::vector<int32_t> ids;
  int32_t bos = 0;
  PKV_RETURN_IF_ERROR(PrefillEach(
      calls, static_cast<int64_t>(pieces.size()),
      [&](int64_t i) {
        v1::PrefillRequest request;
        request.set_preset(preset);
        request.mutable_prompt()->set_text(pieces[i]);
        return request;
      },
      [&](const v1::PrefillResponse& response) -> absl::Status {
        const auto& tokens = response.ticket().token_ids();
        if (tokens.size() < 2) return absl::OkStatus();
        bos = tokens[0];  // of every prompt that is a text (worker_service.proto)
        ids.insert(ids.end(), tokens.begin() + 1, tokens.end());
        return absl::OkStatus();
      }));
  if (ids.empty()) return absl::InvalidArgumentError("the text has no tokens");
  return TokenSource::Text(std::move(ids), bos);
}

absl::StatusOr<Tickets> MakeTickets(WorkerCalls& calls, const Workload& workload, int64_t count,
                                    const std::string& preset) {
  Tickets made;
  TicketSetup& setup = made.setup;
  PKV_RETURN_IF_ERROR(PrefillEach(
      calls, count,
      [&](int64_t i) {
        v1::PrefillRequest request;
        request.set_preset(preset);
        const PlannedPrompt prompt = workload.Prompt(i);
        request.mutable_prompt()->mutable_token_ids()->Add(prompt.token_ids.begin(),
                                                           prompt.token_ids.end());
        return request;
      },
      [&](v1::PrefillResponse response) {
        const v1::PrefillStats& stats = response.stats();
        ++setup.num_tickets;
        setup.prompt_tokens += stats.prompt_tokens();
        setup.cached_tokens += stats.cached_tokens();
        setup.num_not_stored += !stats.stored();
        setup.logical_bytes += static_cast<int64_t>(stats.logical_bytes());
        setup.cache_bytes += static_cast<int64_t>(stats.cache_bytes());
        made.tickets.push_back(std::move(*response.mutable_ticket()));
        return absl::OkStatus();
      }));
  return made;
}

}  // namespace pkv
