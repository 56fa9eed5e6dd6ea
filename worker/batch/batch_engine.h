#ifndef PKV_WORKER_BATCH_BATCH_ENGINE_H_
#define PKV_WORKER_BATCH_BATCH_ENGINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "pkv/block/object_builder.h"
#include "pkv/block/object_header.h"
#include "pkv/client/cache_client.h"
#include "pkv/kernels/codec_params.h"

namespace pkv {

// What an engine has room for.
struct EngineLimits {
  int num_slots = 0;   // sequences that can be resident, and the most of one Step()
  int num_pages = 0;   // blocks that the pool holds, each with all of its layers
  int max_blocks = 0;  // of one sequence
  // A page loaded for one slot may be named by others. False: pages are only counted, and every
  // slot fetches all of its blocks.
  bool shares_pages = false;
  // Attach() takes streams whose frames come to the memory of the engine's GPU.
  bool takes_device_frames = false;
};

// The cached prefix that a sequence starts from.
struct EnginePrefix {
  // num_tables tables, then the blocks of `fetched` in order, then, when num_window_tokens is
  // positive, the window object with so many tokens. Null: an empty prefix.
  std::unique_ptr<GetStream> stream;
  int num_tables = 0;
  int num_window_tokens = 0;
  // The page of each block, in order of the blocks.
  std::vector<int32_t> pages;
  // Header of a block whose page holds it already, by block; nullopt: the stream brings it. No
  // such block appends patterns.
  std::vector<std::optional<ObjectHeader>> resident;
  // Blocks that the stream holds, ascending: those that are not resident, and block 0 in any case:
  // its sinks belong to the slot.
  std::vector<int> fetched;
};

struct StepInput {
  int slot = 0;
  int32_t token = 0;
  bool wants_logits = false;
};

struct StepOutput {
  // OutOfRange: K or V of the token is beyond fp16. The slot is of no more use.
  absl::Status status;
  int32_t greedy_token = 0;  // the likeliest, ties to the lowest id
  float greedy_logprob = 0;  // natural log
  std::span<const float>
      logits;  // [vocab_size] when wanted; valid until the next Step() or First()
};

struct FlushInput {
  int slot = 0;
  int32_t page = 0;  // takes the block
  // Ids of the whole sequence so far, at least up to the block's end: they name it.
  std::span<const int32_t> tokens;
  // For put-back, when not null: gets the sealed table, if this flush mined one because the
  // sequence had no block yet, then the sealed block.
  std::vector<std::unique_ptr<ObjectBuilder>>* sealed = nullptr;
};

// Decodes many sequences at once: model, page pool, windows and banks of one device. A sequence
// lives in a slot: Attach() or Compute(), First(), then Step() and Flush() as often as needed,
// Release().
//
// Which page is whose is the caller's business (page_pool.h); the engine fills and reads what it is
// told. An engine serves one CodecParams at a time unless CheckVariant() says otherwise.
//
// Step() and Flush() are called by one thread. The other calls may come from other threads at the
// same time, for slots that are in no Step() or Flush() then, one thread a slot.
class BatchEngine {
 public:
  virtual ~BatchEngine() = default;

  virtual EngineLimits limits() const = 0;
  // FailedPrecondition: sequences of these parameters are not served here; says which are.
  virtual absl::Status CheckVariant(const CodecParams& params) const = 0;

  // Starts a sequence in an empty slot from a prefix on its way. Returns when the manifest is here
  // and right; First() takes the layers as they come. The stream stays until First() has returned.
  //   errors of WaitForManifest
  //   FailedPrecondition  not an unbroken chain of this profile, geometry and variant
  virtual absl::Status Attach(int slot, const CodecParams& params, EnginePrefix prefix) = 0;

  // Starts a sequence in an empty slot by computing `tokens`: the first `pages.size()` blocks are
  // compressed as a prefill does, into these pages, the rest stays in the window. `cancelled` may
  // be null; it is asked after each layer. `sealed`, when not null, gets the table, if there is
  // one, then the blocks.
  //   Cancelled, OutOfRange
  virtual absl::Status Compute(int slot, const CodecParams& params, std::span<const int32_t> tokens,
                               std::span<const int32_t> pages,
                               const std::function<bool()>& cancelled,
                               std::vector<std::unique_ptr<ObjectBuilder>>* sealed) = 0;

  // The first step of a slot: `token` follows what Attach() or Compute() brought; layer L is
  // computed as soon as layer L of the prefix is here. `on_first_layer`, when not null, is called
  // when layer 0 is here.
  //   errors of the stream; DataLoss: a frame is damaged
  //   Internal, when the stream had no error  as Step()
  virtual absl::Status First(const StepInput& input, const std::function<void()>& on_first_layer,
                             StepOutput& output) = 0;

  // One token for each input, caching it. outputs.size() == inputs.size() <= num_slots.
  //   Internal  the device failed: no slot is of any more use
  virtual absl::Status Step(std::span<const StepInput> inputs, std::span<StepOutput> outputs) = 0;

  // The oldest 128 window tokens of each slot become a block, by the decode phase's rules.
  virtual absl::Status Flush(std::span<const FlushInput> flushes) = 0;

  // Tokens cached, blocks and window.
  virtual int64_t num_tokens(int slot) const = 0;
  // Headers of the slot's blocks, in order.
  virtual std::vector<ObjectHeader> block_headers(int slot) const = 0;
  // Payload bytes that the slot's stream has brought.
  virtual uint64_t received_bytes(int slot) const = 0;

  // Empties the slot: pages it named are not touched by it any more.
  virtual void Release(int slot) = 0;
};

}  // namespace pkv

#endif  // PKV_WORKER_BATCH_BATCH_ENGINE_H_
