#ifndef PKV_TESTS_SUPPORT_FAKE_BATCH_ENGINE_H_
#define PKV_TESTS_SUPPORT_FAKE_BATCH_ENGINE_H_

// A BatchEngine without a model. The next token is a function of the ids of the cached prefix and
// of the tokens after it, so that any interleaving of requests must give each the tokens that it
// has alone. It knows which block stands in which page and checks at every step that the pages of
// each sequence still hold its own; what goes wrong is scripted.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "pkv/block/prefix_hash.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/base/sync.h"
#include "worker/batch/batch_engine.h"

namespace pkv {

inline constexpr int kFakeVocabulary = 97;

// What a sequence of the fake has cached.
struct FakeState {
  uint64_t value = 0;

  static FakeState After(const Digest& last_object) {
    FakeState state;
    std::memcpy(&state.value, last_object.bytes.data(), sizeof(state.value));
    return state;
  }
  // SplitMix64's finalizer (Steele, Lea, Flood, OOPSLA 2014).
  void Add(int32_t token) {
    uint64_t z = value + 0x9e3779b97f4a7c15u * (static_cast<uint64_t>(token) + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    value = z ^ (z >> 31);
  }
  int32_t greedy() const { return static_cast<int32_t>(value % kFakeVocabulary); }
  // The greedy token is the likeliest.
  std::vector<float> logits() const {
    std::vector<float> logits(kFakeVocabulary);
    for (int i = 0; i < kFakeVocabulary; ++i) {
      logits[i] = static_cast<float>((value >> (i % 48)) % 16) / 8;
    }
    logits[greedy()] = 3;
    return logits;
  }
};

// Id of the last object that holds `cached`, of which `num_blocks` blocks; zero without a token.
inline Digest LastObjectId(const Digest& profile, std::span<const int32_t> cached, int num_blocks) {
  const size_t in_blocks = size_t(num_blocks) * kBlockTokens;
  const std::vector<Digest> blocks = PrefixIds(profile, cached.first(in_blocks));
  const Digest last = blocks.empty() ? Digest{} : blocks.back();
  return cached.size() == in_blocks ? last : TailId(profile, last, cached.subspan(in_blocks));
}

// Thread-safe as far as BatchEngine asks, and for the test beside it.
class FakeBatchEngine final : public BatchEngine {
 public:
  FakeBatchEngine(const EngineLimits& limits, const Digest& profile)
      : limits_(limits), profile_(profile), slots_(limits.num_slots) {}
  ~FakeBatchEngine() override {
    for (const Slot& slot : slots_) EXPECT_FALSE(slot.taken) << "a slot was not released";
  }

  // Called at the start of a call, from its thread, without a lock; may wait, or fail the call.
  struct Script {
    std::function<absl::Status()> step, flush, compute, first;
    // Error of one slot's step, by the tokens that it has cached.
    std::function<absl::Status(int64_t num_tokens)> slot_step;
  };
  void set_script(Script script) {
    MutexLock lock(&mu_);
    script_ = std::move(script);
  }
  // Steps wait from now on, those in AllowSteps() excepted.
  void HoldSteps() {
    MutexLock lock(&mu_);
    num_allowed_ = 0;
  }
  void AllowSteps(int count) {
    MutexLock lock(&mu_);
    num_allowed_ = count;
    step_waits_ = false;
    changed_.SignalAll();
  }
  void ReleaseSteps() { AllowSteps(std::numeric_limits<int>::max()); }
  // Returns once a step waits.
  void WaitForHeldStep() {
    MutexLock lock(&mu_);
    while (!step_waits_) changed_.Wait(&mu_);
  }
  // Sizes of the steps so far.
  std::vector<int> batch_sizes() {
    MutexLock lock(&mu_);
    return batch_sizes_;
  }
  int num_taken_slots() {
    MutexLock lock(&mu_);
    return static_cast<int>(
        std::count_if(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.taken; }));
  }

  EngineLimits limits() const override { return limits_; }
  absl::Status CheckVariant(const CodecParams& params) const override {
    if (params.name != "kivi4") return absl::OkStatus();
    return absl::FailedPreconditionError("kivi4 is not served by the fake");
  }

  absl::Status Attach(int slot, const CodecParams& params, EnginePrefix prefix) override {
    Slot own;
    own.taken = true;
    own.params = params;
    own.prefix = std::move(prefix);
    if (own.prefix.stream != nullptr) {
      const absl::Status status = own.prefix.stream->WaitForManifest();
      if (!status.ok()) {
        MutexLock lock(&mu_);
        slots_[slot].taken = true;
        return status;
      }
    }
    const absl::Status status = ReadHeaders(own);
    MutexLock lock(&mu_);
    EXPECT_FALSE(slots_[slot].taken) << "slot " << slot;
    for (size_t i = 0; i < own.prefix.resident.size(); ++i) {
      if (own.prefix.resident[i].has_value()) {
        EXPECT_TRUE(limits_.shares_pages);
        EXPECT_EQ(contents_[own.prefix.pages[i]], own.prefix.resident[i]->id) << "block " << i;
      }
    }
    own.pages = own.prefix.pages;
    slots_[slot] = std::move(own);
    return status;
  }

  absl::Status Compute(int slot, const CodecParams& params, std::span<const int32_t> tokens,
                       std::span<const int32_t> pages, const std::function<bool()>& cancelled,
                       std::vector<std::unique_ptr<ObjectBuilder>>* sealed) override {
    const Script script = CurrentScript();
    const absl::Status scripted = script.compute ? script.compute() : absl::OkStatus();
    MutexLock lock(&mu_);
    Slot& own = slots_[slot];
    EXPECT_FALSE(own.taken) << "slot " << slot;
    own.taken = true;
    own.params = params;
    PKV_RETURN_IF_ERROR(scripted);
    if (cancelled && cancelled()) return absl::CancelledError("cancelled");
    own.pages.assign(pages.begin(), pages.end());
    for (size_t i = 0; i < pages.size(); ++i) {
      MakeBlock(slot, pages[i], tokens.subspan(i * kBlockTokens, kBlockTokens), sealed);
    }
    own.num_tokens = static_cast<int64_t>(tokens.size());
    own.state = FakeState::After(LastObjectId(profile_, tokens, static_cast<int>(pages.size())));
    return absl::OkStatus();
  }

  absl::Status First(const StepInput& input, const std::function<void()>& on_first_layer,
                     StepOutput& output) override {
    const Script script = CurrentScript();
    if (script.first) PKV_RETURN_IF_ERROR(script.first());
    GetStream* stream = nullptr;
    {
      MutexLock lock(&mu_);
      stream = slots_[input.slot].prefix.stream.get();
    }
    if (stream != nullptr) PKV_RETURN_IF_ERROR(stream->WaitForLayer(0));
    if (on_first_layer) on_first_layer();
    MutexLock lock(&mu_);
    Slot& own = slots_[input.slot];
    for (const int block : own.prefix.fetched) {
      if (own.prefix.resident[block].has_value()) continue;
      WritePage(input.slot, own.prefix.pages[block], own.headers[block].id);
    }
    Advance(own, input, output);
    return absl::OkStatus();
  }

  absl::Status Step(std::span<const StepInput> inputs, std::span<StepOutput> outputs) override {
    const Script script = CurrentScript();
    if (script.step) PKV_RETURN_IF_ERROR(script.step());
    MutexLock lock(&mu_);
    while (num_allowed_ == 0) {
      step_waits_ = true;
      changed_.SignalAll();
      changed_.Wait(&mu_);
    }
    --num_allowed_;
    EXPECT_EQ(inputs.size(), outputs.size());
    EXPECT_LE(static_cast<int>(inputs.size()), limits_.num_slots);
    batch_sizes_.push_back(static_cast<int>(inputs.size()));
    std::set<int> seen;
    for (size_t i = 0; i < inputs.size(); ++i) {
      Slot& own = slots_[inputs[i].slot];
      EXPECT_TRUE(own.taken && seen.insert(inputs[i].slot).second) << "slot " << inputs[i].slot;
      for (size_t block = 0; block < own.headers.size(); ++block) {
        EXPECT_EQ(contents_[own.pages[block]], own.headers[block].id) << "page overwritten";
      }
      if (script.slot_step) outputs[i].status = script.slot_step(own.num_tokens);
      if (outputs[i].status.ok()) Advance(own, inputs[i], outputs[i]);
    }
    return absl::OkStatus();
  }

  absl::Status Flush(std::span<const FlushInput> flushes) override {
    const Script script = CurrentScript();
    if (script.flush) PKV_RETURN_IF_ERROR(script.flush());
    MutexLock lock(&mu_);
    for (const FlushInput& flush : flushes) {
      Slot& own = slots_[flush.slot];
      EXPECT_EQ(static_cast<int64_t>(flush.tokens.size()), own.num_tokens);
      const int in_blocks = static_cast<int>(own.headers.size()) * kBlockTokens;
      EXPECT_GT(BlockTokensAfterDecodeStep(own.params, static_cast<int>(own.num_tokens), in_blocks),
                in_blocks);
      own.pages.push_back(flush.page);
      MakeBlock(flush.slot, flush.page, flush.tokens.subspan(in_blocks, kBlockTokens),
                flush.sealed);
    }
    return absl::OkStatus();
  }

  int64_t num_tokens(int slot) const override {
    MutexLock lock(&mu_);
    return slots_[slot].num_tokens;
  }
  std::vector<ObjectHeader> block_headers(int slot) const override {
    MutexLock lock(&mu_);
    return slots_[slot].headers;
  }
  uint64_t received_bytes(int slot) const override {
    MutexLock lock(&mu_);
    const auto& stream = slots_[slot].prefix.stream;
    return stream == nullptr ? 0 : stream->received_bytes();
  }
  void Release(int slot) override {
    std::unique_ptr<GetStream> stream;  // ends without the lock
    MutexLock lock(&mu_);
    EXPECT_TRUE(slots_[slot].taken || slots_[slot].pages.empty());
    stream = std::move(slots_[slot].prefix.stream);
    slots_[slot] = Slot();
  }

 private:
  struct Slot {
    bool taken = false;
    CodecParams params;
    EnginePrefix prefix;
    std::vector<ObjectHeader> headers;
    std::vector<int32_t> pages;
    int64_t num_tokens = 0;
    FakeState state;
    std::vector<float> logits;
  };

  Script CurrentScript() {
    MutexLock lock(&mu_);
    return script_;
  }

  // Headers of the prefix's blocks, wherever they are: a chain, each block with its table and with
  // as many patterns as the blocks before have left there.
  static absl::Status ReadHeaders(Slot& own) {
    EnginePrefix& prefix = own.prefix;
    std::map<Digest, int> banks = {{Digest{}, 0}};
    for (int i = 0; i < prefix.num_tables; ++i) {
      const ObjectHeader& table = prefix.stream->header(i);
      banks[table.id] = table.num_patterns_k;
    }
    Digest last;
    int next_fetched = 0;
    for (int i = 0; i < static_cast<int>(prefix.pages.size()); ++i) {
      const bool is_fetched = std::count(prefix.fetched.begin(), prefix.fetched.end(), i) > 0;
      EXPECT_EQ(is_fetched, i == 0 || !prefix.resident[i].has_value()) << "block " << i;
      ObjectHeader header;
      if (is_fetched) header = prefix.stream->header(prefix.num_tables + next_fetched++);
      if (prefix.resident[i].has_value()) header = *prefix.resident[i];
      const auto bank = banks.find(header.table);
      if (header.parent != last || bank == banks.end() || bank->second != header.num_patterns_k) {
        return absl::FailedPreconditionError(absl::StrCat("block ", i, " breaks the chain"));
      }
      if ((header.flags & kFlagAppendsK) != 0) ++bank->second;
      own.headers.push_back(header);
      last = header.id;
    }
    own.num_tokens = static_cast<int64_t>(prefix.pages.size()) * kBlockTokens;
    if (prefix.num_window_tokens > 0) {
      const ObjectHeader& window = prefix.stream->header(prefix.stream->num_objects() - 1);
      EXPECT_EQ(window.num_tokens, prefix.num_window_tokens);
      own.num_tokens += prefix.num_window_tokens;
      last = window.id;
    }
    own.state = FakeState::After(last);
    return absl::OkStatus();
  }

  void WritePage(int slot, int32_t page, const Digest& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    EXPECT_TRUE(page >= 0 && page < limits_.num_pages) << page;
    for (int other = 0; other < limits_.num_slots; ++other) {
      if (other == slot) continue;
      const auto& pages = slots_[other].pages;
      EXPECT_EQ(std::count(pages.begin(), pages.end(), page), 0)
          << "page " << page << " of slot " << slot << " is also of slot " << other;
    }
    contents_[page] = id;
  }

  // The block that follows the slot's last one, in the fp16 encoding and full of zeros.
  void MakeBlock(int slot, int32_t page, std::span<const int32_t> tokens,
                 std::vector<std::unique_ptr<ObjectBuilder>>* sealed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    Slot& own = slots_[slot];
    ObjectHeader header;
    header.num_layers = 1;
    header.num_kv_heads = 1;
    header.head_dim = 64;
    header.num_tokens = kBlockTokens;
    header.first_token = own.headers.size() * kBlockTokens;
    header.profile = profile_;
    if (!own.headers.empty()) header.parent = own.headers.back().id;
    header.id = *BlockPrefixId(profile_, header.parent, tokens);
    EXPECT_TRUE(SetVariant(own.params.variant(), header).ok());
    own.headers.push_back(header);
    WritePage(slot, page, header.id);
    if (sealed == nullptr) return;
    sealed->push_back(std::make_unique<ObjectBuilder>(*ObjectBuilder::Make(header)));
    EXPECT_TRUE(sealed->back()->Seal().ok());
  }

  static void Advance(Slot& own, const StepInput& input, StepOutput& output) {
    own.state.Add(input.token);
    ++own.num_tokens;
    output.greedy_token = own.state.greedy();
    output.greedy_logprob = -static_cast<float>(own.num_tokens);
    own.logits = own.state.logits();
    if (input.wants_logits) output.logits = own.logits;
  }

  const EngineLimits limits_;
  const Digest profile_;
  mutable Mutex mu_;
  CondVar changed_;
  Script script_ ABSL_GUARDED_BY(mu_);
  std::vector<Slot> slots_;  // guarded by mu_, but for the destructor
  std::map<int32_t, Digest> contents_ ABSL_GUARDED_BY(mu_);  // id of the block in a page
  std::vector<int> batch_sizes_ ABSL_GUARDED_BY(mu_);
  int num_allowed_ ABSL_GUARDED_BY(mu_) = std::numeric_limits<int>::max();
  bool step_waits_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_FAKE_BATCH_ENGINE_H_
