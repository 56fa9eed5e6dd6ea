#ifndef PKV_KVSTORE_SERVICE_SHM_STAGE_H_
#define PKV_KVSTORE_SERVICE_SHM_STAGE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/base/clock.h"
#include "proto/base/sync.h"
#include "proto/transport/local_socket.h"

namespace pkv {

inline constexpr uint64_t kShmStageBytes = uint64_t{16} << 20;
inline constexpr int kMaxShmStages = 16;  // of all connections, each kShmStageBytes
// Since a put last named it: then it is to go to who has more use for it.
inline constexpr absl::Duration kShmStageIdle = absl::Minutes(5);

// kShmTokenBytes that nobody can guess. Unavailable: the kernel has none.
absl::StatusOr<std::string> DrawShmToken();

// Where a client of this host puts payload for the server to copy: an anonymous file that the
// client maps for writing, and the server reads.
//
// Why a stage and not the arena: whoever has once mapped memory for writing can write there until
// it unmaps it, and nobody else can make it. So what is served must never have been mapped by a
// client, and payload is copied once more, from here into the arena. The copy is what is
// checksummed: a client that goes on writing here spoils its own put and nothing else. Why the
// server makes the file: so it is no file of another kind, and keeps its size. Why it does not map
// it: a read through a mapping makes a page of each hole, memory of the server's that the client's
// descriptor keeps, or SIGBUS when there is none; a read of the file finds zeros there.
//
// Thread-safe: constant.
class ShmStage {
 public:
  //   ResourceExhausted  the kernel gives no such file, or cannot seal it
  static absl::StatusOr<std::unique_ptr<ShmStage>> Create(uint64_t bytes);

  // To be passed to the client.
  int fd() const { return fd_.get(); }
  uint64_t bytes() const { return bytes_; }

  // Fills `out` with what stands at `offset` now.
  //   InvalidArgument    not inside the stage
  //   ResourceExhausted  the kernel cannot bring it back from where it was swapped to
  absl::Status Read(uint64_t offset, std::span<std::byte> out) const;

 private:
  ShmStage(FileDescriptor fd, uint64_t bytes) : fd_(std::move(fd)), bytes_(bytes) {}

  const FileDescriptor fd_;
  const uint64_t bytes_;
};

// The stages of one server by their tokens: lent over the socket of the shm transport, found by
// puts that come over gRPC.
//
// Thread-safe, but for Lend: by one thread at a time.
class ShmStages {
 public:
  // `clock` outlives this.
  explicit ShmStages(Clock* clock) : clock_(clock) {}

  struct Lent {
    std::string token;
    // shared_ptr: of the connection, and of puts under way, which go on when that has ended.
    std::shared_ptr<const ShmStage> stage;
  };
  // A stage of its own.
  //   ResourceExhausted  kMaxShmStages are lent or still in use; or as ShmStage::Create
  //   Unavailable        as DrawShmToken
  absl::StatusOr<Lent> Lend() ABSL_LOCKS_EXCLUDED(mu_);
  // No put finds it any more. REQUIRES: it was lent and not taken back. The stages outlive what was
  // lent.
  void TakeBack(const std::string& token) ABSL_LOCKS_EXCLUDED(mu_);
  // For a put. Null: not lent now.
  std::shared_ptr<const ShmStage> Find(const std::string& token) ABSL_LOCKS_EXCLUDED(mu_);
  // When a put last found it, or it was lent. REQUIRES: as TakeBack.
  absl::Time LastUsed(const std::string& token) const ABSL_LOCKS_EXCLUDED(mu_);

  // Of all that are lent or in use.
  uint64_t bytes() const { return static_cast<uint64_t>(num_stages_) * kShmStageBytes; }

 private:
  struct Entry {
    std::shared_ptr<const ShmStage> stage;
    absl::Time used;
  };

  Clock* const clock_;
  std::atomic<int> num_stages_{0};  // counted until their last user is done

  mutable Mutex mu_;
  absl::flat_hash_map<std::string, Entry> by_token_ ABSL_GUARDED_BY(mu_);
};

}  // namespace pkv

#endif  // PKV_KVSTORE_SERVICE_SHM_STAGE_H_
