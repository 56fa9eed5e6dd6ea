#ifndef PKV_WORKER_PREFILL_PREFIX_TURNS_H_
#define PKV_WORKER_PREFILL_PREFIX_TURNS_H_

#include <functional>
#include <set>
#include <utility>

#include "absl/status/statusor.h"
#include "pkv/block/digest.h"
#include "proto/base/sync.h"

namespace pkv {

// Lets prompts that would compute the same block go one after another: the second finds in the
// cache what the first has stored. Side by side both would mine a pattern table of their own, and
// only one of the two chains can be stored. Thread-safe.
class PrefixTurns {
 public:
  // Held while a prompt is computed and stored. Empty when made by default or moved from.
  class Turn {
   public:
    Turn() = default;
    Turn(Turn&& other) noexcept
        : turns_(std::exchange(other.turns_, nullptr)), block_(other.block_) {}
    Turn& operator=(Turn&& other) noexcept {
      std::swap(turns_, other.turns_);
      std::swap(block_, other.block_);
      return *this;
    }
    ~Turn() {
      if (turns_ != nullptr) turns_->Leave(block_);
    }
    bool is_held() const { return turns_ != nullptr; }

   private:
    friend class PrefixTurns;
    Turn(PrefixTurns* turns, const Digest& block) : turns_(turns), block_(block) {}

    PrefixTurns* turns_ = nullptr;  // outlives the turn
    Digest block_;
  };

  // The turn for prompts whose first block to be computed is `block` (its prefix id). When another
  // prompt has it: waits until that one is through, and returns an empty turn: look into the cache
  // again. `cancelled` may be null; it is asked every 50 ms.
  //   Cancelled
  absl::StatusOr<Turn> Take(const Digest& block, const std::function<bool()>& cancelled);

 private:
  void Leave(const Digest& block);

  Mutex mu_;
  CondVar left_;
  std::set<Digest> taken_ ABSL_GUARDED_BY(mu_);
};

}  // namespace pkv

#endif  // PKV_WORKER_PREFILL_PREFIX_TURNS_H_
