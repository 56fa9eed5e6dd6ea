#include "tests/bench/serve/metrics_watch.h"

#include <civetweb.h>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// A page of every series that our processes have is some 20 kB.
constexpr size_t kMaxPageBytes = size_t{16} << 20;

struct HttpAddress {
  std::string host, path;
  int port = 0;
};

absl::StatusOr<HttpAddress> ParseUrl(const std::string& url) {
  absl::string_view rest = url;
  HttpAddress address;
  if (absl::ConsumePrefix(&rest, "http://")) {
    const std::pair<std::string, std::string> parts = absl::StrSplit(rest, absl::MaxSplits('/', 1));
    address.path = absl::StrCat("/", parts.second);
    const size_t colon = parts.first.rfind(':');
    address.host = parts.first.substr(0, colon);
    if (colon != std::string::npos && !address.host.empty() &&
        absl::SimpleAtoi(parts.first.substr(colon + 1), &address.port) && address.port > 0 &&
        address.port < 65536) {
      return address;
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", url, "' is no address of metrics: http://HOST:PORT/PATH"));
}

}  // namespace

absl::StatusOr<MetricsPage> ScrapeMetrics(const std::string& url) {
  PKV_ASSIGN_OR_RETURN(const HttpAddress address, ParseUrl(url));
  char error[256] = "";
  mg_connection* connection = mg_download(address.host.c_str(), address.port, /*use_ssl=*/0, error,
                                          sizeof(error), "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n",
                                          address.path.c_str(), address.host.c_str());
  if (connection == nullptr) return absl::UnavailableError(absl::StrCat(url, ": ", error));
  const int code = mg_get_response_info(connection)->status_code;
  std::string text;
  char piece[16384];
  for (int read = 1; read > 0 && text.size() < kMaxPageBytes;) {
    read = mg_read(connection, piece, sizeof(piece));
    if (read > 0) text.append(piece, read);
  }
  mg_close_connection(connection);
  if (code != 200) return absl::UnavailableError(absl::StrCat(url, ": HTTP status ", code));
  return MetricsPage::Parse(text);
}

absl::StatusOr<std::unique_ptr<MetricsWatch>> MetricsWatch::Start(
    const std::vector<std::pair<std::string, std::string>>& urls, absl::Duration interval) {
  auto watch = std::unique_ptr<MetricsWatch>(new MetricsWatch);
  for (const auto& [role, url] : urls) {
    PKV_ASSIGN_OR_RETURN(const MetricsPage page, ScrapeMetrics(url));
    watch->pages_.push_back({.role = role, .url = url});
    watch->pages_.back().history.Add(page);
  }
  MetricsWatch* const raw = watch.get();
  watch->thread_ = std::thread([raw, interval] { raw->Run(interval); });
  return watch;
}

MetricsWatch::~MetricsWatch() { EndThread(); }

std::vector<MetricsWatch::Page> MetricsWatch::Stop() {
  EndThread();
  ScrapeAll();
  return std::move(pages_);
}

void MetricsWatch::Run(absl::Duration interval) {
  while (true) {
    {
      MutexLock lock(&mu_);
      if (!stopping_) changed_.WaitWithTimeout(&mu_, interval);
      if (stopping_) return;
    }
    ScrapeAll();
  }
}

void MetricsWatch::ScrapeAll() {
  for (Page& page : pages_) {
    const absl::StatusOr<MetricsPage> scraped = ScrapeMetrics(page.url);
    page.ends_scraped = scraped.ok();
    if (scraped.ok()) {
      page.history.Add(*scraped);
    } else if (page.num_failures++ == 0) {
      page.first_failure = scraped.status().ToString();
    }
  }
}

void MetricsWatch::EndThread() {
  if (!thread_.joinable()) return;
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.SignalAll();
  }
  thread_.join();
}

}  // namespace pkv
