#include "worker/batch/cpu_batch_engine.h"

#include <gmock/gmock.h>

#include <thread>

#include "tests/support/tiny_worker.h"
#include "worker/decode/ticket.h"

namespace pkv {
namespace {

using testing::HasSubstr;

class CpuBatchEngineTest : public TinyWorkersTest {
 protected:
  // What a scheduler would make of a prefilled prompt.
  struct Sequence {
    BatchRequest request;
    std::vector<int32_t> tokens;
    Continuation continuation;

    StepInput Next(int slot) const { return {slot, tokens.back(), true}; }
    void Take(const StepOutput& output) {
      EXPECT_THAT(output.status, IsOk());
      tokens.push_back(output.greedy_token);
      continuation.tokens.push_back(output.greedy_token);
      continuation.logprobs.push_back(output.greedy_logprob);
    }
  };

  Sequence MakeSequence(const std::vector<int32_t>& prompt, const std::string& preset) {
    const absl::StatusOr<BatchRequest> request =
        ReadTicket(MakeDecode(Prefill(prompt, preset).ticket(), 1), *host_);
    EXPECT_THAT(request, IsOk());
    return {*request, prompt, {}};
  }
  absl::Status Attach(int slot, const Sequence& sequence) {
    EnginePrefix prefix;
    prefix.num_tables = sequence.request.num_tables;
    prefix.num_window_tokens = sequence.request.num_window_tokens;
    for (int i = 0; i < sequence.request.num_blocks; ++i) {
      prefix.pages.push_back(i);
      prefix.resident.emplace_back();
      prefix.fetched.push_back(i);
    }
    if (!sequence.request.keys.empty()) prefix.stream = cache_.StartGet(sequence.request.keys);
    return engine_.Attach(slot, sequence.request.params, std::move(prefix));
  }
  absl::Status Compute(int slot, const Sequence& sequence,
                       const std::function<bool()>& cancelled = nullptr,
                       std::vector<std::unique_ptr<ObjectBuilder>>* sealed = nullptr) {
    const std::vector<int32_t> pages(sequence.request.num_blocks);
    const std::span<const int32_t> all = sequence.request.tokens;
    return engine_.Compute(slot, sequence.request.params, all.first(all.size() - 1), pages,
                           cancelled, sealed);
  }
  void First(int slot, Sequence& sequence) {
    StepOutput output;
    ASSERT_THAT(engine_.First(sequence.Next(slot), nullptr, output), IsOk());
    sequence.Take(output);
  }

  CpuBatchEngine engine_{host_, {.num_slots = 3, .num_pages = 50}};
};

TEST_F(CpuBatchEngineTest, HasTheLimitsThatItWasGivenAndTheModelsContext) {
  const EngineLimits limits = engine_.limits();
  EXPECT_EQ(limits.num_slots, 3);
  EXPECT_EQ(limits.num_pages, 50);
  EXPECT_EQ(limits.max_blocks, host_->config().max_position_embeddings / kBlockTokens);
  EXPECT_FALSE(limits.shares_pages);
}

TEST_F(CpuBatchEngineTest, ServesEveryPresetOfItsShape) {
  for (const std::string& preset : PresetNames()) {
    EXPECT_THAT(engine_.CheckVariant(Params(preset)), IsOk()) << preset;
  }
  CodecParams params = Params("pkv2");
  params.num_patterns_k = 256;
  EXPECT_THAT(engine_.CheckVariant(params), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(CpuBatchEngineTest, StepsManySequencesAsIfEachWereAlone) {
  std::vector<Sequence> sequences;
  for (const int num_tokens : {1, 150, 257}) {
    sequences.push_back(MakeSequence(RandomPrompt(num_tokens, num_tokens), "fp16"));
  }
  for (int slot = 0; slot < 3; ++slot) {
    ASSERT_THAT(Attach(slot, sequences[slot]), IsOk());
    First(slot, sequences[slot]);
    EXPECT_EQ(engine_.num_tokens(slot),
              static_cast<int64_t>(sequences[slot].request.tokens.size()));
    EXPECT_EQ(engine_.received_bytes(slot) > 0, slot > 0);
  }
  EXPECT_EQ(engine_.block_headers(2).size(), 2u);
  for (int step = 0; step < 8; ++step) {
    // The order of the slots is of no importance, and not every one need step.
    std::vector<StepInput> inputs;
    for (const int slot : {2, 0, 1}) {
      if (step % 3 != slot) inputs.push_back(sequences[slot].Next(slot));
    }
    std::vector<StepOutput> outputs(inputs.size());
    ASSERT_THAT(engine_.Step(inputs, outputs), IsOk());
    for (size_t i = 0; i < inputs.size(); ++i) sequences[inputs[i].slot].Take(outputs[i]);
  }
  for (int slot = 0; slot < 3; ++slot) {
    const Continuation& got = sequences[slot].continuation;
    EXPECT_EQ(got, ExactContinuation(sequences[slot].request.tokens, int(got.tokens.size())));
    engine_.Release(slot);
  }
}

TEST_F(CpuBatchEngineTest, StepsBesideAFirstOfAnotherSlot) {
  Sequence running = MakeSequence(RandomPrompt(10, 200), "fp16");
  Sequence coming = MakeSequence(RandomPrompt(11, 300), "fp16");
  ASSERT_THAT(Attach(0, running), IsOk());
  First(0, running);
  cache_.HoldLayersFrom(1);
  ASSERT_THAT(Attach(1, coming), IsOk());
  std::thread first([&] { First(1, coming); });
  cache_.WaitForBlockedReader();  // layer 0 is computed, layer 1 not here
  for (int step = 0; step < 5; ++step) {
    const StepInput input = running.Next(0);
    StepOutput output;
    ASSERT_THAT(engine_.Step({&input, 1}, {&output, 1}), IsOk());
    running.Take(output);
  }
  cache_.ReleaseLayers();
  first.join();
  EXPECT_EQ(running.continuation, ExactContinuation(running.request.tokens, 6));
  EXPECT_EQ(coming.continuation, ExactContinuation(coming.request.tokens, 1));
}

TEST_F(CpuBatchEngineTest, GivesLogitsWhenTheyAreWanted) {
  Sequence sequence = MakeSequence(RandomPrompt(12, 20), "fp16");
  ASSERT_THAT(Attach(0, sequence), IsOk());
  StepOutput output;
  ASSERT_THAT(engine_.First(sequence.Next(0), nullptr, output), IsOk());
  ASSERT_EQ(static_cast<int>(output.logits.size()), host_->config().vocab_size);
  EXPECT_EQ(Sampler::Make({})->Sample(output.logits)->token_id, output.greedy_token);
  const StepInput input = {0, output.greedy_token, false};
  StepOutput plain;
  ASSERT_THAT(engine_.Step({&input, 1}, {&plain, 1}), IsOk());
  EXPECT_TRUE(plain.logits.empty());
}

TEST_F(CpuBatchEngineTest, ComputesTheVeryCacheThatAPrefillStores) {
  for (const char* preset : {"fp16", "pkv2", "default"}) {
    Sequence fetched = MakeSequence(RandomPrompt(13, 400), preset);
    Sequence computed = fetched;
    ASSERT_THAT(Attach(0, fetched), IsOk());
    std::vector<std::unique_ptr<ObjectBuilder>> sealed;
    ASSERT_THAT(Compute(1, computed, nullptr, &sealed), IsOk());
    First(0, fetched);
    First(1, computed);
    EXPECT_EQ(fetched.continuation, computed.continuation) << preset;
    EXPECT_EQ(engine_.block_headers(0), engine_.block_headers(1)) << preset;
    ASSERT_EQ(static_cast<int>(sealed.size()),
              computed.request.num_tables + computed.request.num_blocks);
    for (size_t i = 0; i < sealed.size(); ++i) {
      const std::vector<std::byte> stored = cache_.Bytes(computed.request.keys[i]);
      const std::span<const std::byte> own = sealed[i]->bytes();
      EXPECT_TRUE(std::equal(own.begin(), own.end(), stored.begin(), stored.end())) << i;
    }
    engine_.Release(0);
    engine_.Release(1);
  }
}

TEST_F(CpuBatchEngineTest, StopsAComputationBetweenTwoLayers) {
  const Sequence sequence = MakeSequence(RandomPrompt(14, 200), "fp16");
  int num_asked = 0;
  EXPECT_THAT(Compute(0, sequence, [&] { return ++num_asked == 2; }),
              StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(num_asked, 2);
  engine_.Release(0);
}

TEST_F(CpuBatchEngineTest, FlushesTheTableThatItMinedBeforeTheBlock) {
  Sequence sequence = MakeSequence(RandomPrompt(15, 128), "pkv2");
  ASSERT_EQ(sequence.request.num_blocks, 0);
  ASSERT_THAT(Attach(0, sequence), IsOk());
  First(0, sequence);
  ASSERT_EQ(engine_.num_tokens(0), 128);
  std::vector<std::unique_ptr<ObjectBuilder>> sealed;
  const std::span<const int32_t> cached = std::span(sequence.tokens).first(128);
  const FlushInput flush = {0, 0, cached, &sealed};
  ASSERT_THAT(engine_.Flush({&flush, 1}), IsOk());
  ASSERT_EQ(sealed.size(), 2u);
  EXPECT_EQ(sealed[0]->header().kind, ObjectKind::kTable);
  EXPECT_EQ(sealed[1]->header(), engine_.block_headers(0).front());
  EXPECT_EQ(sealed[1]->header().table, sealed[0]->header().id);
  EXPECT_EQ(sealed[1]->header().id, PrefixIds(host_->profile(), cached).front());
  cache_.Clear();
  for (const PutOutcome& outcome : cache_.Put(
           std::vector<std::span<const std::byte>>{sealed[0]->bytes(), sealed[1]->bytes()})) {
    EXPECT_TRUE(outcome.stored) << outcome.status.ToString();
  }
}

TEST_F(CpuBatchEngineTest, GivesTheErrorsOfTheFetch) {
  const Sequence sequence = MakeSequence(RandomPrompt(16, 300), "fp16");
  cache_.Damage(sequence.request.keys[1], 1);
  ASSERT_THAT(Attach(0, sequence), IsOk());
  StepOutput output;
  int num_called = 0;
  EXPECT_THAT(engine_.First(
                  sequence.Next(0), [&] { ++num_called; }, output),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(num_called, 1) << "layer 0 was whole";
  engine_.Release(0);
  cache_.Clear();
  EXPECT_THAT(Attach(0, sequence), StatusIs(absl::StatusCode::kNotFound));
  engine_.Release(0);
  EXPECT_THAT(Compute(0, sequence), IsOk()) << "the slot is empty again";
}

TEST_F(CpuBatchEngineTest, ATokenOutsideTheVocabularyIsAnErrorOfItsSlot) {
  Sequence sequence = MakeSequence(RandomPrompt(17, 20), "fp16");
  ASSERT_THAT(Attach(0, sequence), IsOk());
  First(0, sequence);
  const StepInput input = {0, kTinyVocabulary, false};
  StepOutput output;
  EXPECT_THAT(engine_.Step({&input, 1}, {&output, 1}), IsOk());
  EXPECT_THAT(output.status, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("264")));
}

}  // namespace
}  // namespace pkv
