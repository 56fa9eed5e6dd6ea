#ifndef PKV_CLIENT_CACHE_CLIENT_H_
#define PKV_CLIENT_CACHE_CLIENT_H_

// The SDK: find, store and fetch blocks, windows and tables in pkvd.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "pkv/block/aligned_buffer.h"
#include "pkv/block/object_header.h"
#include "pkv/block/object_key.h"
#include "pkv/client/cache_cluster.h"
#include "pkv/client/client_options.h"

namespace pkv {

struct LookupResult {
  int variant_index = 0;  // in the list that was asked for
  int num_blocks = 0;     // contiguous from the start; 0 is a miss
  uint64_t bytes = 0;
  uint64_t ssd_bytes = 0;         // part of `bytes` that the server has to read from its disk
  std::vector<Digest> table_ids;  // pattern tables of those blocks
  std::vector<int> blocks_per_variant;
};

struct ObjectStat {
  bool present = false;
  uint64_t object_bytes = 0;
  absl::Duration idle;          // since last use
  std::vector<std::byte> head;  // header and frame table; empty when absent
};

struct ServerStats {
  uint64_t capacity_bytes = 0, resident_bytes = 0, pinned_bytes = 0, reserved_bytes = 0;
  uint64_t num_objects = 0, num_evictions = 0;
  // Of the server's disk; some of its objects are in memory, too. Capacity 0: it has none.
  uint64_t ssd_capacity_bytes = 0, ssd_resident_bytes = 0, ssd_objects = 0;
  bool draining = false;
  std::string version;
};

// What the server said about one object of a put.
enum class PutDecision { kWanted, kPresent, kRefused };

struct ObjectDescriptor {
  ObjectKey key;
  int num_layers = 0;
  uint64_t frame_bytes = 0;
};

// Outcome for one object. OK and stored: ours are the bytes there now. OK and not stored: equal
// bytes were there already.
//   AlreadyExists       different bytes stand under this key: of a block with patterns, encoded
//                       against another bank; otherwise the encoding is not deterministic. Or the
//                       block before it stands there with another bank: no reader could use it
//   FailedPrecondition  the pattern table it refers to is not stored
//   ResourceExhausted   the server's memory is full of pinned objects, or smaller than the object
//   DataLoss            a checksum was wrong on arrival
struct PutOutcome {
  absl::Status status;
  bool stored = false;
};

// An upload in progress: frames may be written layer by layer while later layers are still being
// computed.
//
// Destroying it before every object is committed discards what was not.
// Thread-compatible, but Cancel may be called from any thread.
class PutStream {
 public:
  virtual ~PutStream() = default;

  // One per object, in order. Frames of objects that are not wanted are ignored, their commits
  // answered at once.
  virtual const std::vector<PutDecision>& decisions() const = 0;
  // Why an object was refused; OK for the others.
  virtual absl::Status refusal(int object_index) const = 0;

  // Sends one layer's frames. Copies before it returns; blocks while the server is slower than the
  // caller.
  //   frames[i]  frame of object i, or empty to skip it
  //   Unavailable, DeadlineExceeded  the stream broke: call Finish() for the outcomes
  virtual absl::Status WriteLayer(int layer,
                                  std::span<const std::span<const std::byte>> frames) = 0;

  // Publishes one object whose frames were all written. `head` is ObjectBuilder::head().
  virtual absl::Status Commit(int object_index, std::span<const std::byte> head) = 0;

  // Waits for the receipts. One outcome per object; Cancelled for those never committed.
  virtual std::vector<PutOutcome> Finish() = 0;

  // Pending and later calls end soon.
  virtual void Cancel() = 0;
};

// A download in progress. Frames arrive layer by layer; a layer may be used as soon as
// WaitForLayer(layer) returned OK, while the others are still on their way.
//
// Over gRPC frames are copied into memory owned by this object. Over shm (ClientOptions::transport)
// nothing is copied: frame() points into the server's memory, which the server keeps as it is for
// this stream, and takes back if this process gives no sign of life for long, or holds it for too
// long (pkvd --shm-silence, --shm-pin-age). CheckHeld() tells.
//
// Over nccl (StartDeviceGet) frames come to device memory that the caller names, verified there.
//
// Thread-compatible, but Cancel may be called from any thread.
class GetStream {
 public:
  virtual ~GetStream() = default;

  // Waits until the sizes of all objects are known.
  //   NotFound     an object is not stored (names the first one)
  //   DataLoss     a stored header is damaged
  //   Unavailable, DeadlineExceeded, Cancelled
  virtual absl::Status WaitForManifest() = 0;

  // Of a get to a GPU's memory: where frame `layer` of object `i` is to come, at
  // places[i * num_layers + layer], device memory aligned to 16 bytes; null: anywhere. All objects
  // have num_layers layers. Frames that come to host memory all the same come elsewhere, see
  // is_on_device. Places may be written to until ReleasePlaces(), or until the last layer is
  // here. The first frames are under way when the manifest is here: whoever names no places within
  // a second has lost the pair, and the frames come by another way. REQUIRES: WaitForManifest() was
  // OK and nothing was waited for since; no two places overlap. At most once.
  virtual void PlaceFrames(std::span<std::byte* const> places) {}
  // Cancels, and waits until nothing is written to places any more: at once where no transfer is
  // under way. One that is goes on, since its bytes are on their way: until it is done, nothing
  // comes for a second, or the get's deadline has passed; a second more to abort one that broke.
  //   Internal  the GPU does not stop: places are of no more use, end the process
  virtual absl::Status ReleasePlaces() { return absl::OkStatus(); }

  // Waits until all frames of `layer` have arrived, with their checksums and numbers verified.
  //   DataLoss     a frame is damaged: drop the object, compute it again. Counted by the server as
  //                well when it sees it
  //   Unavailable  the server went away and did not come back within the deadline
  //   Aborted      as CheckHeld()
  virtual absl::Status WaitForLayer(int layer) = 0;
  virtual absl::Status WaitForAll() = 0;

  virtual int num_objects() const = 0;
  // REQUIRES: WaitForManifest() was OK; frame(): WaitForLayer(layer) was OK. Valid until
  // destruction or TakeObject; what was read there counts once CheckHeld() was OK after it.
  virtual const ObjectHeader& header(int object_index) const = 0;
  // Whether frames of `layer` are in device memory: only of a get that StartDeviceGet started.
  virtual bool is_on_device(int layer) const { return false; }
  virtual std::span<const std::byte> frame(int object_index, int layer) const = 0;
  // The object's bytes, complete and parseable. REQUIRES: WaitForAll() was OK. Call once per
  // object. They count once CheckHeld() was OK after it.
  virtual AlignedBuffer TakeObject(int object_index) = 0;

  // Whether all that was read from frames so far was what had been verified. Always OK for what
  // gRPC brought. Costs a microsecond: ask after each step of work on frames.
  //   Aborted  the server took its memory back: forget what was computed from frames since the last
  //            OK, destroy this stream and start again
  virtual absl::Status CheckHeld() = 0;

  // Payload received so far; over shm, all of it from the manifest on.
  virtual uint64_t received_bytes() const = 0;
  virtual void Cancel() = 0;
};

// A connection to one pkvd. No gRPC type shows. It is a cluster of one, whose state it does not
// know.
//
// Every call ends by its deadline: with the server gone, Unavailable or DeadlineExceeded, never a
// hang. Thread-safe.
class CacheClient : public CacheCluster {
 public:
  // Does not wait for the server. `gpu`, for StartDeviceGet, is copied; null: none.
  // InvalidArgument: an option is out of its range (names it), or Transport::kNccl without a GPU.
  static absl::StatusOr<std::unique_ptr<CacheClient>> Create(const ClientOptions& options,
                                                             const NcclPort* gpu = nullptr);

  CacheClient& ServerFor(std::span<const Digest>, absl::string_view) override { return *this; }
  std::vector<ServerStatus> servers() const override { return {}; }
  // ClientOptions::address; empty of a client that is not connected by address.
  virtual std::string address() const { return ""; }

  // Longest stored prefix among `prefix_ids` (at most 4,096), per variant; the answer is a hint:
  // blocks may be evicted before they are fetched.
  virtual absl::StatusOr<LookupResult> Lookup(std::span<const Digest> prefix_ids,
                                              std::span<const Variant> variants) = 0;

  // Starts a download; returns at once. Objects that share layers arrive together, layer by layer.
  virtual std::unique_ptr<GetStream> StartGet(std::span<const ObjectKey> keys) = 0;
  // As StartGet, for a caller that takes frames in the memory of the client's GPU as well as in the
  // host's: which it is shows layer by layer, GetStream::is_on_device. TakeObject is not for such a
  // stream while a layer of it is there. `direct_server`: address of a prefill worker that is said
  // to have all of them on its GPU, which is asked first if it may be (ClientOptions::direct_from);
  // empty: none.
  virtual std::unique_ptr<GetStream> StartDeviceGet(std::span<const ObjectKey> keys,
                                                    absl::string_view direct_server) {
    return StartGet(keys);
  }
  // Whole objects. As GetStream, waiting for all.
  virtual absl::StatusOr<std::vector<AlignedBuffer>> Get(std::span<const ObjectKey> keys) = 0;

  // Starts an upload and waits for the server's decisions.
  virtual absl::StatusOr<std::unique_ptr<PutStream>> StartPut(
      std::span<const ObjectDescriptor> objects) = 0;
  // Uploads sealed objects (ObjectBuilder::bytes()); retries each one on its own. One outcome per
  // object. Put a table before the blocks that refer to it: the order of `objects` is kept.
  virtual std::vector<PutOutcome> Put(std::span<const std::span<const std::byte>> objects) = 0;

  virtual absl::StatusOr<std::vector<ObjectStat>> Stat(std::span<const ObjectKey> keys) = 0;
  // Number of objects that were there.
  virtual absl::StatusOr<int> Delete(std::span<const ObjectKey> keys) = 0;
  virtual absl::StatusOr<ServerStats> Stats() = 0;
  virtual absl::Status Drain() = 0;
};

}  // namespace pkv

#endif  // PKV_CLIENT_CACHE_CLIENT_H_
