#include "worker/serve/model_host.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <thread>

#include "tests/support/tiny_worker.h"

namespace pkv {
namespace {

using testing::HasSubstr;

class ModelHostTest : public TinyWorkersTest {};

v1::Prompt TextPrompt(const std::string& text) {
  v1::Prompt prompt;
  prompt.set_text(text);
  return prompt;
}

TEST_F(ModelHostTest, IdentifiesItsModel) {
  EXPECT_EQ(host_->config().num_layers, 2);
  EXPECT_EQ(LoadTinyHost(folder_->path())->profile(), host_->profile());
  TinyModel other;
  other.seed = 2;
  EXPECT_NE(LoadTinyHost(TinyModelFolder(other).path())->profile(), host_->profile());
}

TEST_F(ModelHostTest, RefusesWhatItCannotLoad) {
  EXPECT_THAT(ModelHost::Load(folder_->path() + "/none", 1), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(ModelHost::Load(folder_->path(), 0),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("threads 0")));
  EXPECT_THAT(ModelHost::Load(folder_->path(), 1025), StatusIs(absl::StatusCode::kInvalidArgument));
  const TinyModelFolder without_tokenizer;
  std::filesystem::remove(without_tokenizer.path() + "/tokenizer.model");
  EXPECT_THAT(ModelHost::Load(without_tokenizer.path(), 1), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(ModelHostTest, PutsBosBeforeTextAndTakesTokenIdsAsTheyAre) {
  const auto from_text = host_->ResolvePrompt(TextPrompt("a"));
  ASSERT_THAT(from_text, IsOk());
  EXPECT_EQ(from_text->front(), host_->config().bos_token_id);
  EXPECT_GT(from_text->size(), 1u);
  v1::Prompt prompt = TextPrompt("a");
  prompt.add_token_ids(42);
  EXPECT_THAT(host_->ResolvePrompt(prompt), IsOkAndHolds(std::vector<int32_t>{42}));
}

TEST_F(ModelHostTest, RefusesPromptsOutsideItsLimits) {
  EXPECT_THAT(host_->ResolvePrompt({}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("neither")));
  EXPECT_THAT(host_->CheckTokens({}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(host_->CheckTokens(std::vector<int32_t>{kTinyVocabulary - 1}), IsOk());
  EXPECT_THAT(host_->CheckTokens(std::vector<int32_t>{0, kTinyVocabulary}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("token id 264 at position 1 not in [0, 264)")));
  EXPECT_THAT(host_->CheckTokens(std::vector<int32_t>(1024)), IsOk());
  EXPECT_THAT(host_->CheckTokens(std::vector<int32_t>(1025)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("1025 tokens")));
  EXPECT_THAT(host_->ResolvePrompt(TextPrompt(std::string(1025, 'x'))),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("at most 1024")));
}

TEST_F(ModelHostTest, PrefillsWhatTheSequenceDoesNotHoldLayerByLayer) {
  const std::vector<int32_t> tokens = RandomPrompt(1, 200);
  const auto at_once = *host_->MakeSequence(Params("fp16"));
  const auto in_parts = *host_->MakeSequence(Params("fp16"));
  std::vector<int> layers;
  const auto note = [&](int layer) {
    layers.push_back(layer);
    return absl::OkStatus();
  };
  ASSERT_THAT(ComputePrefill(*host_, *at_once, tokens, note), IsOk());
  EXPECT_EQ(layers, (std::vector<int>{0, 1}));
  EXPECT_EQ(at_once->num_tokens(), 200);
  ASSERT_THAT(ComputePrefill(*host_, *in_parts, std::span(tokens).first(150), nullptr), IsOk());
  ASSERT_THAT(ComputePrefill(*host_, *in_parts, tokens, nullptr), IsOk());
  EXPECT_EQ(in_parts->num_tokens(), 200);
  const KvTensorView a = at_once->window(1), b = in_parts->window(1);
  EXPECT_TRUE(std::equal(a.k_row(0, 0), a.k_row(0, 200), b.k_row(0, 0)));

  layers.clear();
  ASSERT_THAT(ComputePrefill(*host_, *at_once, tokens, note), IsOk());
  EXPECT_TRUE(layers.empty()) << "nothing was left to compute";
}

TEST_F(ModelHostTest, EndsAPassWithTheErrorOfItsObserver) {
  const auto sequence = *host_->MakeSequence(Params("fp16"));
  int calls = 0;
  EXPECT_THAT(ComputePrefill(*host_, *sequence, RandomPrompt(2, 20),
                             [&](int) {
                               ++calls;
                               return absl::CancelledError("enough");
                             }),
              StatusIs(absl::StatusCode::kCancelled, "enough"));
  EXPECT_EQ(calls, 1);
}

TEST_F(ModelHostTest, ReplicasComputeTheSameOnOneThread) {
  const std::vector<int32_t> tokens = RandomPrompt(5, 200);
  const auto sequence = *host_->MakeSequence(Params("fp16"));
  const auto own = *host_->MakeReplicaSequence(Params("fp16"));
  std::vector<float> expected(host_->config().vocab_size), logits(expected.size());
  ASSERT_THAT(host_->Forward(tokens, 0, *sequence, 199, expected.data()), IsOk());
  ASSERT_THAT(host_->MakeReplica()->Forward(tokens, 0, *own, 199, logits.data()), IsOk());
  EXPECT_EQ(logits, expected);
}

TEST_F(ModelHostTest, LetsForwardPassesTakeTurns) {
  const Continuation a = ExactContinuation(RandomPrompt(3, 50), 20);
  const Continuation b = ExactContinuation(RandomPrompt(4, 50), 20);
  Continuation beside;
  std::thread other([&] { beside = ExactContinuation(RandomPrompt(3, 50), 20); });
  EXPECT_EQ(ExactContinuation(RandomPrompt(4, 50), 20), b);
  other.join();
  EXPECT_EQ(beside, a);
}

}  // namespace
}  // namespace pkv
