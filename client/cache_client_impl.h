#ifndef PKV_CLIENT_CACHE_CLIENT_IMPL_H_
#define PKV_CLIENT_CACHE_CLIENT_IMPL_H_

#include <memory>

#include "absl/status/status.h"
#include "client/connection.h"
#include "pkv/client/cache_client.h"
#include "pkv/client/client_options.h"

namespace pkv {

// InvalidArgument names the option, its value and its range.
absl::Status ValidateOptions(const ClientOptions& options);

// A client on top of any connection. `gpu`: for gets to its memory; null: none. REQUIRES: `options`
// are valid.
std::unique_ptr<CacheClient> MakeCacheClient(const ClientOptions& options,
                                             std::unique_ptr<Connection> connection,
                                             const NcclPort* gpu = nullptr);

}  // namespace pkv

#endif  // PKV_CLIENT_CACHE_CLIENT_IMPL_H_
