// Uses the SDK as a stranger does. No server runs, and every call must still end.

#include <cstdio>
#include <vector>

#include "absl/time/time.h"
#include "pkv/block/object_key.h"
#include "pkv/client/cache_client.h"

int main() {
  pkv::ClientOptions options;
  options.address = "unix:/nonexistent/pkvd.sock";
  options.lookup_deadline = absl::Milliseconds(200);
  absl::StatusOr<std::unique_ptr<pkv::CacheClient>> client = pkv::CacheClient::Create(options);
  if (!client.ok()) {
    std::fprintf(stderr, "create: %s\n", client.status().ToString().c_str());
    return 1;
  }
  const std::vector<pkv::Digest> prefix_ids(1);
  const std::vector<pkv::Variant> variants = {{"default", 1}};
  const absl::Status status = (*client)->Lookup(prefix_ids, variants).status();
  std::printf("lookup without a server: %s\n", status.ToString().c_str());
  const bool ended = status.code() == absl::StatusCode::kUnavailable ||
                     status.code() == absl::StatusCode::kDeadlineExceeded;
  return ended ? 0 : 1;
}
