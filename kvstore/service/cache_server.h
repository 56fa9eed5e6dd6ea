#ifndef PKV_KVSTORE_SERVICE_CACHE_SERVER_H_
#define PKV_KVSTORE_SERVICE_CACHE_SERVER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace pkv {

class ReloadMetrics;
struct NcclPort;  // proto/transport/nccl/nccl_port.h

struct CacheServerOptions {
  std::string listen = "127.0.0.1:7440";          // host:port or unix:/path
  std::string metrics_listen = "127.0.0.1:9440";  // host:port; empty: no metrics are served
  // Where health checks alone are answered, from the first moment, in plain text, for whoever asks;
  // host:port or unix:/path, empty: nowhere but on `listen`.
  std::string health_listen = {};
  uint64_t capacity_bytes = uint64_t{4} << 30;
  absl::Duration stall_timeout = absl::Seconds(10);  // of a stream on which nothing moves
  bool reflection = true;
  // Where readers of this host get at the memory itself; empty: nowhere.
  std::string shm_socket = {};
  bool shm_any_user = false;  // off: only our own user and root
  // That one of their connections may pin; 0: half the capacity. All together: that and half of
  // what is left, so that puts find room.
  uint64_t shm_pinned_bytes = 0;
  absl::Duration shm_silence = absl::Seconds(30);  // a reader that does not renew loses its pins
  absl::Duration shm_pin_age = absl::Hours(1);     // of one pin
  // Where objects go that memory has no room for, and from where they come back: a folder of this
  // process alone. Empty: nowhere. Both or none.
  std::string ssd_dir = {};
  uint64_t ssd_capacity_bytes = 0;
  bool ssd_reused_only = false;  // write only what was got twice since it was put
  // Longest that a get waits for the disk; what is not in memory by then is a miss. Over shm and
  // nccl 1.5 s at most.
  absl::Duration ssd_read_timeout = absl::Milliseconds(1500);
  // Of the GPU that sends stored frames to readers' GPUs; null: none does. shared_ptr: whoever
  // opened it may go on using it.
  std::shared_ptr<const NcclPort> nccl = {};
  // There is no encryption and no authentication yet: whoever reaches the port can read and write.
  bool allow_insecure_remote = false;
};

// pkvd without its command line: store, services, metrics, sockets.
//
// Thread-safe.
class CacheServer {
 public:
  // What Start would refuse by the options alone; binds nothing and takes no memory.
  //   InvalidArgument     names the option
  static absl::Status Check(const CacheServerOptions& options);
  // Serves when it returns.
  //   InvalidArgument     an address or size is wrong, or the address is reachable from other hosts
  //                       and allow_insecure_remote is off
  //   InvalidArgument, FailedPrecondition, Unavailable  the folder on disk, as OpenPosixDisk and
  //                       SegmentLog::Open
  //   ResourceExhausted   no memory for the arena, or it cannot be pinned for the GPU
  //   Unavailable         an address is in use
  static absl::StatusOr<std::unique_ptr<CacheServer>> Start(const CacheServerOptions& options);
  virtual ~CacheServer() = default;

  virtual int port() const = 0;          // 0 for a unix socket
  virtual int metrics_port() const = 0;  // 0 when none is served
  virtual int health_port() const = 0;   // 0 when there is none, or for a unix socket
  // Descriptor of the arena, see BlockStore::arena_fd().
  virtual int arena_fd() const = 0;
  // A part of this.
  virtual ReloadMetrics& reload_metrics() = 0;

  // Readiness becomes NOT_SERVING, new puts are refused, the rest goes on. Idempotent.
  virtual void Drain() = 0;
  // Takes no new calls and returns when those in flight have ended, at the latest after `grace`,
  // when they are cancelled. Meanwhile what is in memory is written to disk, if there is one, as
  // far as that takes no longer than `grace`. Idempotent.
  virtual void Shutdown(absl::Duration grace) = 0;
};

}  // namespace pkv

#endif  // PKV_KVSTORE_SERVICE_CACHE_SERVER_H_
