#ifndef PKV_TESTS_SUPPORT_BATCH_FIXTURE_H_
#define PKV_TESTS_SUPPORT_BATCH_FIXTURE_H_

// A BatchScheduler over a FakeBatchEngine and a FakeCacheClient, with prompts whose prefixes are
// stored and callers that remember what they were told.

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "proto/metrics/metric_registry.h"
#include "tests/support/fake_batch_engine.h"
#include "tests/support/fake_cache_client.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tensor_gen.h"
#include "worker/batch/batch_scheduler.h"

namespace pkv {

// Holds whoever passes until it is opened.
class TestGate {
 public:
  void Pass() {
    MutexLock lock(&mu_);
    ++num_waiting_;
    changed_.SignalAll();
    while (!open_) changed_.Wait(&mu_);
  }
  void Open() {
    MutexLock lock(&mu_);
    open_ = true;
    changed_.SignalAll();
  }
  // Counts those that have passed, too.
  void WaitForArrivals(int count) {
    MutexLock lock(&mu_);
    while (num_waiting_ < count) changed_.Wait(&mu_);
  }

 private:
  Mutex mu_;
  CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mu_) = false;
  int num_waiting_ ABSL_GUARDED_BY(mu_) = 0;
};

// What one request's callbacks said. Thread-safe.
class BatchCaller {
 public:
  absl::Status Token(const SampledToken& token) {
    MutexLock lock(&mu_);
    EXPECT_FALSE(ended_) << "a token after the end";
    tokens_.push_back(token.token_id);
    changed_.SignalAll();
    return static_cast<int>(tokens_.size()) == leaves_after_
               ? absl::CancelledError("the caller has had enough")
               : absl::OkStatus();
  }
  void End(const BatchOutcome& outcome) {
    MutexLock lock(&mu_);
    EXPECT_FALSE(ended_) << "ended twice";
    ended_ = true;
    outcome_ = outcome;
    changed_.SignalAll();
  }
  // Token number `count` is refused.
  void LeaveAfter(int count) {
    MutexLock lock(&mu_);
    leaves_after_ = count;
  }

  BatchOutcome WaitForEnd() {
    MutexLock lock(&mu_);
    while (!ended_) changed_.Wait(&mu_);
    return outcome_;
  }
  void WaitForTokens(size_t count) {
    MutexLock lock(&mu_);
    while (tokens_.size() < count) changed_.Wait(&mu_);
  }
  std::vector<int32_t> tokens() {
    MutexLock lock(&mu_);
    return tokens_;
  }
  bool ended() {
    MutexLock lock(&mu_);
    return ended_;
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::vector<int32_t> tokens_ ABSL_GUARDED_BY(mu_);
  int leaves_after_ ABSL_GUARDED_BY(mu_) = -1;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  BatchOutcome outcome_ ABSL_GUARDED_BY(mu_);
};

// What is stored of a prompt.
struct StoredPrefix {
  std::string preset = "fp16";
  uint8_t table = 1;    // tells pattern tables apart; presets with patterns only
  int appends_at = -1;  // this block appends a K pattern; -1: none does
};

class BatchTest : public testing::Test {
 protected:
  static constexpr KvShape kShape = {.num_layers = 1, .num_kv_heads = 1, .head_dim = 64};

  static Digest Profile() {
    Digest profile;
    profile.bytes[0] = 9;
    return profile;
  }
  static CodecParams Params(const std::string& preset) {
    const absl::StatusOr<CodecParams> params = PresetByName(preset, kShape);
    PKV_CHECK(params.ok(), params.status().ToString());
    return *params;
  }

  // Call once a test.
  void Start(const EngineLimits& limits, BatchOptions options = {}) {
    engine_ = std::make_unique<FakeBatchEngine>(limits, Profile());
    scheduler_ = std::make_unique<BatchScheduler>(engine_.get(), &cache_, &metrics_, options);
  }
  ~BatchTest() override {
    if (scheduler_ == nullptr) return;
    engine_->ReleaseSteps();
    // Cancels what has not ended.
    scheduler_.reset();
    EXPECT_EQ(engine_->num_taken_slots(), 0);
  }

  // No prompt of another seed begins with these tokens.
  static std::vector<int32_t> Prompt(uint64_t seed, int num_tokens) {
    TestRandom random(seed);
    std::vector<int32_t> tokens(num_tokens);
    for (int32_t& token : tokens) token = random.Below(1 << 20);
    return tokens;
  }

  // A request that continues `tokens`, cached whole but for the last: full blocks, then a window.
  BatchRequest Request(const std::vector<int32_t>& tokens, int max_tokens,
                       const StoredPrefix& prefix = {}) {
    BatchRequest request;
    request.params = Params(prefix.preset);
    request.tokens = tokens;
    request.max_tokens = max_tokens;
    request.num_blocks = (static_cast<int>(tokens.size()) - 1) / kBlockTokens;
    request.num_window_tokens = (static_cast<int>(tokens.size()) - 1) % kBlockTokens;
    request.num_tables = request.params.encoding.has_patterns ? 1 : 0;
    const ObjectHeader table = TableHeader(request.params, prefix.table);
    if (request.num_tables > 0) request.keys.push_back(table.key());
    for (const ObjectHeader& header : BlockHeaders(request, prefix)) {
      request.keys.push_back(header.key());
    }
    if (request.num_window_tokens > 0) request.keys.push_back(WindowHeader(request).key());
    return request;
  }

  // Stores what the request's keys name.
  void Store(const BatchRequest& request, const StoredPrefix& prefix = {}) {
    if (request.num_tables > 0) cache_.Insert(MakeTable(request.params, prefix.table).bytes());
    for (const ObjectHeader& header : BlockHeaders(request, prefix)) Insert(header);
    if (request.num_window_tokens > 0) Insert(WindowHeader(request));
  }
  BatchRequest StoredRequest(const std::vector<int32_t>& tokens, int max_tokens,
                             const StoredPrefix& prefix = {}) {
    BatchRequest request = Request(tokens, max_tokens, prefix);
    Store(request, prefix);
    return request;
  }

  absl::StatusOr<uint64_t> Submit(BatchRequest request, BatchCaller& caller) {
    request.on_token = [&caller](const SampledToken& token) { return caller.Token(token); };
    request.on_end = [&caller](const BatchOutcome& outcome) { caller.End(outcome); };
    return scheduler_->Submit(std::move(request));
  }
  uint64_t MustSubmit(const BatchRequest& request, BatchCaller& caller) {
    const absl::StatusOr<uint64_t> id = Submit(request, caller);
    EXPECT_THAT(id, IsOk());
    return id.value_or(0);
  }
  BatchOutcome Run(const BatchRequest& request) {
    BatchCaller caller;
    MustSubmit(request, caller);
    return caller.WaitForEnd();
  }

  // The greedy tokens that a request has alone.
  static std::vector<int32_t> Expected(const BatchRequest& request) {
    const std::span<const int32_t> cached =
        std::span(request.tokens).first(request.tokens.size() - 1);
    FakeState state = FakeState::After(LastObjectId(Profile(), cached, request.num_blocks));
    std::vector<int32_t> tokens;
    int32_t next = request.tokens.back();
    for (int i = 0; i < request.max_tokens; ++i) {
      state.Add(next);
      next = state.greedy();
      tokens.push_back(next);
    }
    return tokens;
  }

  // All is given back: nothing runs, no page is referenced.
  void ExpectNothingHeld() {
    const PagePool::Counts counts = scheduler_->page_counts();
    EXPECT_EQ(counts.referenced, 0);
    EXPECT_EQ(counts.free + counts.cached, engine_->limits().num_pages);
    EXPECT_EQ(engine_->num_taken_slots(), 0);
  }

  // A counter's or gauge's value, or a histogram's number of observations, of the one series that
  // has this label.
  double Metric(const std::string& name, const std::string& label = "",
                const std::string& value = "") {
    for (const prometheus::MetricFamily& family : metrics_.registry()->Collect()) {
      if (family.name != name) continue;
      for (const prometheus::ClientMetric& metric : family.metric) {
        bool found = label.empty();
        for (const auto& own : metric.label) found |= own.name == label && own.value == value;
        if (!found) continue;
        return metric.counter.value + metric.gauge.value +
               static_cast<double>(metric.histogram.sample_count);
      }
    }
    ADD_FAILURE() << "no series " << name << "{" << label << "=" << value << "}";
    return -1;
  }

  FakeCacheClient cache_;
  WorkerMetrics metrics_{"decode"};
  std::unique_ptr<FakeBatchEngine> engine_;
  std::unique_ptr<BatchScheduler> scheduler_;

 private:
  static ObjectHeader HeaderOf(ObjectKind kind, const CodecParams& params) {
    ObjectHeader header;
    header.kind = kind;
    header.num_layers = 1;
    header.num_kv_heads = 1;
    header.head_dim = 64;
    header.profile = Profile();
    EXPECT_THAT(SetVariant(params.variant(), header), IsOk());
    return header;
  }
  static constexpr int kTablePatterns = 4;

  // Sealed, so that it has its id, which follows from the content: patterns of `table`.
  static ObjectBuilder MakeTable(const CodecParams& params, uint8_t table) {
    ObjectHeader header = HeaderOf(ObjectKind::kTable, params);
    header.num_patterns_k = kTablePatterns;
    header.num_patterns_v = kTablePatterns;
    ObjectBuilder builder = *ObjectBuilder::Make(header);
    builder.frame(0)[0] = std::byte{table};
    EXPECT_THAT(builder.Seal(), IsOk());
    return builder;
  }
  static ObjectHeader TableHeader(const CodecParams& params, uint8_t table) {
    if (!params.encoding.has_patterns) return {};
    return MakeTable(params, table).header();
  }
  static std::vector<ObjectHeader> BlockHeaders(const BatchRequest& request,
                                                const StoredPrefix& prefix) {
    std::vector<ObjectHeader> headers;
    Digest parent;
    int num_patterns = kTablePatterns;
    const ObjectHeader table = TableHeader(request.params, prefix.table);
    for (int i = 0; i < request.num_blocks; ++i) {
      ObjectHeader header = HeaderOf(ObjectKind::kBlock, request.params);
      header.set_encoding(request.params.encoding);
      header.num_tokens = kBlockTokens;
      header.first_token = uint64_t(i) * kBlockTokens;
      header.parent = parent;
      header.id =
          *BlockPrefixId(Profile(), parent,
                         std::span(request.tokens).subspan(size_t(i) * kBlockTokens, kBlockTokens));
      if (request.params.encoding.has_patterns) {
        header.table = table.id;
        header.num_patterns_k = static_cast<uint16_t>(num_patterns);
        header.num_patterns_v = kTablePatterns;
        if (i == prefix.appends_at) {
          header.flags |= kFlagAppendsK;
          ++num_patterns;
        }
      }
      parent = header.id;
      headers.push_back(header);
    }
    return headers;
  }
  static ObjectHeader WindowHeader(const BatchRequest& request) {
    ObjectHeader header = HeaderOf(ObjectKind::kWindow, request.params);
    header.num_tokens = static_cast<uint16_t>(request.num_window_tokens);
    header.first_token = uint64_t(request.num_blocks) * kBlockTokens;
    const std::vector<Digest> blocks =
        PrefixIds(Profile(), std::span(request.tokens).first(header.first_token));
    if (!blocks.empty()) header.parent = blocks.back();
    header.id = TailId(Profile(), header.parent,
                       std::span(request.tokens).subspan(header.first_token, header.num_tokens));
    return header;
  }
  void Insert(const ObjectHeader& header) {
    ObjectBuilder builder = *ObjectBuilder::Make(header);
    ASSERT_THAT(builder.Seal(), IsOk());
    cache_.Insert(builder.bytes());
  }
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_BATCH_FIXTURE_H_
