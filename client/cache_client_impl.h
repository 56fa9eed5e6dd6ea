#ifndef PKV_CLIENT_CACHE_CLIENT_IMPL_H_
#define PKV_CLIENT_CACHE_CLIENT_IMPL_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/connection.h"
#include "client/device_scratch.h"
#include "client/direct_peers.h"
#include "pkv/client/cache_client.h"
#include "pkv/client/client_options.h"

namespace pkv {

// InvalidArgument names the option, its value and its range, or says what it needs. `gpu`: that
// frames may come to; null: none.
absl::Status ValidateOptions(const ClientOptions& options, const NcclPort* gpu = nullptr);

// The cluster of these servers, each over its connection, to each a pair of its own when there is a
// `gpu`; null: none.
struct ClusterServer {
  std::string address;
  std::unique_ptr<Connection> connection;
};
// REQUIRES: `options` are valid but for the address; at least one server.
std::unique_ptr<CacheCluster> MakeCacheCluster(const ClientOptions& options,
                                               std::vector<ClusterServer> servers,
                                               const NcclPort* gpu = nullptr);

// Device memory for frames without a place. shared_ptr: of all clients to one GPU, and their
// streams.
std::shared_ptr<DeviceScratch> MakeDeviceScratch(const NcclPort& gpu);

// The prefill workers that options.direct_from names; null: none, or no GPU. REQUIRES: `options`
// are valid. shared_ptr: as the scratch.
std::shared_ptr<DirectPeers> MakeDirectPeers(const ClientOptions& options, const NcclPort* gpu);

// A client on top of any connection. `gpu`: for gets to its memory; null: none. REQUIRES: `options`
// are valid; with a GPU, its scratch.
std::unique_ptr<CacheClient> MakeCacheClient(const ClientOptions& options,
                                             std::unique_ptr<Connection> connection,
                                             const NcclPort* gpu = nullptr,
                                             std::shared_ptr<DeviceScratch> scratch = nullptr,
                                             std::shared_ptr<DirectPeers> direct = nullptr);

}  // namespace pkv

#endif  // PKV_CLIENT_CACHE_CLIENT_IMPL_H_
