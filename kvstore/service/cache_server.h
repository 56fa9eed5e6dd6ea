#ifndef PKV_KVSTORE_SERVICE_CACHE_SERVER_H_
#define PKV_KVSTORE_SERVICE_CACHE_SERVER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace pkv {

struct CacheServerOptions {
  std::string listen = "127.0.0.1:7440";          // host:port or unix:/path
  std::string metrics_listen = "127.0.0.1:9440";  // host:port; empty: no metrics are served
  uint64_t capacity_bytes = uint64_t{4} << 30;
  absl::Duration stall_timeout = absl::Seconds(10);  // of a stream on which nothing moves
  bool reflection = true;
  // There is no encryption and no authentication yet: whoever reaches the port can read and write.
  bool allow_insecure_remote = false;
};

// pkvd without its command line: store, services, metrics, sockets.
//
// Thread-safe.
class CacheServer {
 public:
  // Serves when it returns.
  //   InvalidArgument     an address or size is wrong, or the address is reachable from other hosts
  //                       and allow_insecure_remote is off
  //   ResourceExhausted   no memory for the arena
  //   Unavailable         an address is in use
  static absl::StatusOr<std::unique_ptr<CacheServer>> Start(const CacheServerOptions& options);
  virtual ~CacheServer() = default;

  virtual int port() const = 0;          // 0 for a unix socket
  virtual int metrics_port() const = 0;  // 0 when none is served
  // Descriptor of the arena, see BlockStore::arena_fd().
  virtual int arena_fd() const = 0;

  // Health becomes NOT_SERVING, new puts are refused, the rest goes on. Idempotent.
  virtual void Drain() = 0;
  // Takes no new calls and returns when those in flight have ended, at the latest after `grace`,
  // when they are cancelled. Idempotent.
  virtual void Shutdown(absl::Duration grace) = 0;
};

}  // namespace pkv

#endif  // PKV_KVSTORE_SERVICE_CACHE_SERVER_H_
