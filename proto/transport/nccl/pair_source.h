#ifndef PKV_PROTO_TRANSPORT_NCCL_PAIR_SOURCE_H_
#define PKV_PROTO_TRANSPORT_NCCL_PAIR_SOURCE_H_

#include <cstddef>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/block/object_key.h"
#include "pkv/v1/nccl_handoff.pb.h"
#include "proto/transport/nccl/transfer_plan.h"

namespace pkv {

// Why a pair ended.
enum class PairEnd {
  kReader,   // closed by the reader, or the reader is gone
  kFailed,   // broke or timed out, or the reader does not speak the protocol
  kStopped,  // this server ends
  kUnopened  // was offered and did not open, whoever's fault that is (pair_offers.h)
};

// Objects that stay where they are, unchanged, until this is destroyed. Thread-compatible.
class PairHold {
 public:
  virtual ~PairHold() = default;

  // The bytes of their frames, in layer l those of all objects that have one, in the order of the
  // fetch; a span may hold several frames. Device memory of the pair's GPU, or registered host
  // memory. The first call makes the lists, which are valid as long as this.
  virtual std::span<const LayerSpans> layers() = 0;
  // They have been sent, or, not OK, not all of them. At most once.
  virtual void SendEnded(const absl::Status& status) = 0;
};

// What the pairs of a server send from, and who counts what becomes of them.
//
// Thread-safe: every pair asks on a thread of its own.
class PairSource {
 public:
  virtual ~PairSource() = default;

  // Holds all of `keys`, or none. Adds to `manifest` a head for each key, in order, as far as it
  // gets; an empty one for what is not here.
  //   NotFound  a head is empty; all are there
  //   others    told to the reader as they are; heads may be missing
  virtual absl::StatusOr<std::unique_ptr<PairHold>> Hold(std::span<const ObjectKey> keys,
                                                         v1::PairManifest& manifest) = 0;
  // A reader found the object damaged, which it may be or not: see to it. Called at most once for
  // each object of a fetch.
  virtual void OnDamaged(const ObjectKey& key) = 0;

  // For metrics. A manifest would not fit into a message; so many pairs there are, those being
  // opened included, told under a lock of the server's; one has ended.
  virtual void OnTooLarge() = 0;
  virtual void SetNumPairs(size_t num_pairs) = 0;
  virtual void OnPairEnded(PairEnd reason) = 0;
};

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_NCCL_PAIR_SOURCE_H_
