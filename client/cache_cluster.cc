#include "pkv/client/cache_cluster.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cache_client_impl.h"
#include "client/placement.h"
#include "client/watched_connection.h"
#include "pkv/client/cache_client.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

constexpr size_t kMaxServers = 64;

class CacheClusterImpl final : public CacheCluster {
 public:
  CacheClusterImpl(const ClientOptions& options, std::vector<ClusterServer> servers,
                   const NcclPort* gpu) {
    const auto scratch = gpu == nullptr ? nullptr : MakeDeviceScratch(*gpu);
    const auto direct = MakeDirectPeers(options, gpu);
    for (ClusterServer& server : servers) {
      auto connection = std::make_unique<WatchedConnection>(
          std::move(server.connection),
          WatchedConnection::Options{server.address, options.probe_interval,
                                     options.lookup_deadline});
      const WatchedConnection* const watched = connection.get();
      ClientOptions one = options;
      one.address = server.address;
      addresses_.push_back(std::move(server.address));
      servers_.push_back(
          {watched, MakeCacheClient(one, std::move(connection), gpu, scratch, direct)});
    }
  }

  CacheClient& ServerFor(std::span<const Digest> chain, absl::string_view hint) override {
    for (size_t i = 0; i < servers_.size(); ++i) {
      const bool is_meant = absl::string_view(addresses_[i]) == hint;
      if (is_meant && servers_[i].connection->state() != ServerState::kAway) {
        return *servers_[i].client;
      }
    }
    const std::vector<int> ranking = RankServers(AnchorOf(chain), addresses_);
    for (const ServerState wanted : {ServerState::kReady, ServerState::kDraining}) {
      for (const int i : ranking) {
        if (servers_[i].connection->state() == wanted) return *servers_[i].client;
      }
    }
    return *servers_[ranking.front()].client;
  }

  std::vector<ServerStatus> servers() const override {
    std::vector<ServerStatus> statuses;
    for (size_t i = 0; i < servers_.size(); ++i) {
      statuses.push_back({addresses_[i], servers_[i].connection->state()});
    }
    return statuses;
  }

  ClientCounters counters() const override {
    ClientCounters sum;
    for (const Server& server : servers_) sum += server.client->counters();
    return sum;
  }

 private:
  struct Server {
    const WatchedConnection* connection;  // the client's
    std::unique_ptr<CacheClient> client;
  };

  // Constant after construction.
  std::vector<std::string> addresses_;
  std::vector<Server> servers_;
};

absl::StatusOr<std::vector<std::string>> SplitAddresses(const std::string& list) {
  std::vector<std::string> addresses;
  for (const absl::string_view part : absl::StrSplit(list, ',')) {
    addresses.emplace_back(absl::StripAsciiWhitespace(part));
  }
  if (addresses.size() > kMaxServers) {
    return absl::InvalidArgumentError(
        absl::StrCat("address names ", addresses.size(), " servers; at most ", kMaxServers));
  }
  for (auto it = addresses.begin(); it != addresses.end(); ++it) {
    if (std::find(addresses.begin(), it, *it) != it) {
      return absl::InvalidArgumentError(absl::StrCat("address names '", *it, "' twice"));
    }
  }
  return addresses;
}

}  // namespace

ClientCounters& ClientCounters::operator+=(const ClientCounters& other) {
  lookups += other.lookups;
  gets += other.gets;
  puts += other.puts;
  retries += other.retries;
  failures += other.failures;
  get_bytes += other.get_bytes;
  put_bytes += other.put_bytes;
  integrity_failures += other.integrity_failures;
  shm_gets += other.shm_gets;
  shm_get_bytes += other.shm_get_bytes;
  shm_fallbacks += other.shm_fallbacks;
  shm_puts += other.shm_puts;
  shm_put_bytes += other.shm_put_bytes;
  shm_put_fallbacks += other.shm_put_fallbacks;
  nccl_gets += other.nccl_gets;
  nccl_get_bytes += other.nccl_get_bytes;
  nccl_fallbacks += other.nccl_fallbacks;
  direct_gets += other.direct_gets;
  direct_get_bytes += other.direct_get_bytes;
  direct_fallbacks += other.direct_fallbacks;
  direct_refusals += other.direct_refusals;
  direct_crowded += other.direct_crowded;
  return *this;
}

std::unique_ptr<CacheCluster> MakeCacheCluster(const ClientOptions& options,
                                               std::vector<ClusterServer> servers,
                                               const NcclPort* gpu) {
  return std::make_unique<CacheClusterImpl>(options, std::move(servers), gpu);
}

absl::StatusOr<std::unique_ptr<CacheCluster>> CacheCluster::Create(const ClientOptions& options,
                                                                   const NcclPort* gpu) {
  PKV_ASSIGN_OR_RETURN(const std::vector<std::string> addresses, SplitAddresses(options.address));
  std::vector<ClusterServer> servers;
  for (const std::string& address : addresses) {
    ClientOptions one = options;
    one.address = address;
    PKV_RETURN_IF_ERROR(ValidateOptions(one, gpu));
    servers.push_back({address, MakeGrpcConnection(one)});
  }
  return MakeCacheCluster(options, std::move(servers), gpu);
}

}  // namespace pkv
