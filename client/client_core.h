#ifndef PKV_CLIENT_CLIENT_CORE_H_
#define PKV_CLIENT_CLIENT_CORE_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "client/backoff.h"
#include "client/call_record.h"
#include "client/connection.h"
#include "client/device_scratch.h"
#include "client/direct_peers.h"
#include "client/nccl_dialer.h"
#include "client/shm_dialer.h"
#include "pkv/client/cache_client.h"
#include "pkv/client/client_options.h"
#include "proto/base/clock.h"
#include "proto/base/thread_pool.h"

namespace pkv {

// ClientCounters that many threads add to. Thread-safe.
struct CounterSet {
  std::atomic<uint64_t> lookups{0}, gets{0}, puts{0}, retries{0}, failures{0};
  std::atomic<uint64_t> grpc_get_bytes{0}, grpc_put_bytes{0}, integrity_failures{0};
  std::atomic<uint64_t> shm_gets{0}, shm_get_bytes{0}, shm_fallbacks{0};
  std::atomic<uint64_t> shm_puts{0}, shm_put_bytes{0}, shm_put_fallbacks{0};
  std::atomic<uint64_t> nccl_gets{0}, nccl_get_bytes{0}, nccl_fallbacks{0};
  std::atomic<uint64_t> direct_gets{0}, direct_get_bytes{0}, direct_fallbacks{0};
  std::atomic<uint64_t> direct_refusals{0}, direct_crowded{0};

  // Counts how a call ended. A miss and a cancellation are no failures.
  void CountEnd(const absl::Status& status) {
    if (status.ok() || absl::IsNotFound(status) || absl::IsCancelled(status)) return;
    ++failures;
    if (absl::IsDataLoss(status)) ++integrity_failures;
  }
};

// What a client and its streams share. Thread-safe.
struct ClientCore {
  ClientOptions options;  // constant after construction; its statistics are there
  std::unique_ptr<Connection> connection;
  std::unique_ptr<ShmDialer> shm;          // of gets; uses the connection
  std::unique_ptr<ShmDialer> shm_puts;     // likewise
  std::unique_ptr<ThreadPool> check_pool;  // helps those who wait for a layer; may be null
  // Of a client with a GPU; null: without.
  std::shared_ptr<DeviceScratch> scratch;  // shared with the other clients of a cluster
  std::unique_ptr<NcclDialer> nccl;        // uses the connection
  std::shared_ptr<DirectPeers> direct;     // shared as the scratch; null: none may be asked
  Clock* clock = nullptr;
  CounterSet counters;
  std::atomic<uint64_t> next_seed{0};

  CallRecord Record(CallMethod method) const { return {options.statistics, method, clock}; }
  RetryPause PauseOf(CallMethod method) { return {options.statistics.get(), method}; }
  Backoff MakeBackoff() {
    return Backoff(options.initial_backoff, options.max_backoff, next_seed.fetch_add(1));
  }
};

}  // namespace pkv

#endif  // PKV_CLIENT_CLIENT_CORE_H_
