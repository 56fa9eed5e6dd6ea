#ifndef PKV_CLIENT_CACHE_CLIENT_IMPL_H_
#define PKV_CLIENT_CACHE_CLIENT_IMPL_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/connection.h"
#include "pkv/client/cache_client.h"
#include "pkv/client/client_options.h"

namespace pkv {

// InvalidArgument names the option, its value and its range.
absl::Status ValidateOptions(const ClientOptions& options);

// The cluster of these servers, each over its connection.
struct ClusterServer {
  std::string address;
  std::unique_ptr<Connection> connection;
};
// REQUIRES: `options` are valid but for the address; at least one server.
std::unique_ptr<CacheCluster> MakeCacheCluster(const ClientOptions& options,
                                               std::vector<ClusterServer> servers);

// A client on top of any connection. REQUIRES: `options` are valid.
std::unique_ptr<CacheClient> MakeCacheClient(const ClientOptions& options,
                                             std::unique_ptr<Connection> connection);

}  // namespace pkv

#endif  // PKV_CLIENT_CACHE_CLIENT_IMPL_H_
