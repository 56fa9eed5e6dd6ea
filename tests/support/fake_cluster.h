#ifndef PKV_TESTS_SUPPORT_FAKE_CLUSTER_H_
#define PKV_TESTS_SUPPORT_FAKE_CLUSTER_H_

// A CacheCluster of FakeCacheClients "server0", "server1".. that chooses as it is told.

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/base/sync.h"
#include "tests/support/fake_cache_client.h"

namespace pkv {

// Thread-safe.
class FakeCluster final : public CacheCluster {
 public:
  explicit FakeCluster(int num_servers) {
    for (int i = 0; i < num_servers; ++i) {
      servers_.push_back(std::make_unique<FakeCacheClient>());
      servers_.back()->set_address(absl::StrCat("server", i));
    }
  }

  FakeCacheClient& server(int i) { return *servers_[i]; }
  // That is chosen from now on, unless a hint names another.
  void Prefer(int i) {
    MutexLock lock(&mu_);
    preferred_ = i;
  }
  // As it was last asked.
  std::vector<Digest> last_chain() const {
    MutexLock lock(&mu_);
    return last_chain_;
  }

  CacheClient& ServerFor(std::span<const Digest> chain, absl::string_view hint) override {
    MutexLock lock(&mu_);
    last_chain_.assign(chain.begin(), chain.end());
    for (const auto& server : servers_) {
      if (absl::string_view(server->address()) == hint) return *server;
    }
    return *servers_[preferred_];
  }
  std::vector<ServerStatus> servers() const override {
    std::vector<ServerStatus> statuses;
    for (const auto& server : servers_) statuses.push_back({server->address()});
    return statuses;
  }
  ClientCounters counters() const override { return {}; }

 private:
  std::vector<std::unique_ptr<FakeCacheClient>> servers_;  // constant after construction
  mutable Mutex mu_;
  int preferred_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<Digest> last_chain_ ABSL_GUARDED_BY(mu_);
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_FAKE_CLUSTER_H_
