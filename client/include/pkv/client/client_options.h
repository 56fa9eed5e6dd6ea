#ifndef PKV_CLIENT_CLIENT_OPTIONS_H_
#define PKV_CLIENT_CLIENT_OPTIONS_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "pkv/client/call_statistics.h"

namespace pkv {

// How the bytes of a get reach the caller. Everything else, puts included, always goes over gRPC.
enum class Transport {
  // kNccl for gets to a GPU's memory, else kShm, each where the server offers it; kGrpc where it
  // does not or where it fails
  kAuto,
  kGrpc,  // copied from messages
  kShm,   // read in place, in the memory of a server on the same host; or not at all
  kNccl  // gets to a GPU's memory: sent from the server's GPU to ours, or not at all; others: kGrpc
};

// "auto", "grpc", "shm" or "nccl", as on command lines. InvalidArgument: something else.
absl::StatusOr<Transport> ParseTransport(absl::string_view name);

// InvalidArgument: not a list for ClientOptions::direct_from.
absl::Status CheckDirectFrom(absl::string_view list);
// An address as tickets have to spell it for a decode worker to know it: numbers as inet_ntop
// does, those of IPv6 in brackets. InvalidArgument: not host:port, of digits alone.
absl::StatusOr<std::string> SpellDirectAddress(absl::string_view address);

// How a CacheClient connects and retries. Plain data.
struct ClientOptions {
  // host:port or unix:/path of one pkvd; for CacheCluster of up to 64, separated by commas.
  std::string address = "127.0.0.1:7440";
  Transport transport = Transport::kAuto;
  int num_channels = 4;  // TCP connections; calls take turns. 1..16
  // Over gRPC a get of many objects travels in so many streams, of which each is on the next
  // connection: one brings about 1 GB/s. 1..16
  int num_get_streams = 4;

  // Threads that verify the frames of a layer of 1 MiB and more, the one that waits for it
  // included: one alone checks fewer bytes a second than shm or a fast network brings. 1..64
  int num_check_threads = 4;

  // Deadlines of one call, retries included.
  absl::Duration lookup_deadline = absl::Milliseconds(500);
  absl::Duration get_deadline = absl::Seconds(10);
  absl::Duration put_deadline = absl::Seconds(30);
  // A get or put on which nothing moves for this long ends with DeadlineExceeded.
  absl::Duration progress_timeout = absl::Seconds(5);

  // CacheCluster alone: how often it asks each server whether it is there.
  absl::Duration probe_interval = absl::Seconds(1);

  // Retries of what is safe to repeat (Lookup, Stat, Delete; Get from its first missing layer; Put
  // of one object), on Unavailable and ResourceExhausted: exponential from initial to max, each
  // times a random factor in [0.5, 1].
  int max_attempts = 4;
  absl::Duration initial_backoff = absl::Milliseconds(20);
  absl::Duration max_backoff = absl::Seconds(1);

  // Of a client with a GPU: prefill workers, name:port, separated by commas, that gets to it may
  // ask first when their caller names one (StartDeviceGet). An address that a name resolves to may
  // be asked too; no other, whatever a ticket says. Needs Transport::kAuto. Empty: none.
  std::string direct_from;

  uint32_t message_bytes = 512 << 10;  // target payload of one message, 4 KiB..1 MiB

  // Where calls are counted; null: nowhere that anybody looks. shared_ptr: several clients may
  // count in one, and their streams may outlive them.
  std::shared_ptr<CallStatistics> statistics;
};

}  // namespace pkv

#endif  // PKV_CLIENT_CLIENT_OPTIONS_H_
