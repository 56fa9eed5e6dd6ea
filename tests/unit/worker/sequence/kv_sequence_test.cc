#include "worker/sequence/kv_sequence.h"

#include <gtest/gtest.h>

#include <thread>

#include "pkv/block/prefix_hash.h"
#include "tests/unit/worker/sequence/sequence_driver.h"

namespace pkv {
namespace {

using testing::HasSubstr;

CodecParams Params(absl::string_view preset) { return PresetFor(preset, kSequenceShape); }

// Every claim holds for each way to encode.
class KvSequencePresetTest : public testing::TestWithParam<const char*> {
 protected:
  const CodecParams params_ = Params(GetParam());
  FakeCacheClient cache_;
};

INSTANTIATE_TEST_SUITE_P(Presets, KvSequencePresetTest,
                         testing::Values("fp16", "kivi2", "kivi4-g32", "pkv2", "pkv4", "default"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST_P(KvSequencePresetTest, MakesVerifiableObjectsNamedByTheirTokens) {
  constexpr int kTokens = 3 * kBlockTokens + 45;
  const Conversation talk(1, kTokens);
  const std::unique_ptr<KvSequence> sequence = MakeSequence(params_);
  Prefill(*sequence, talk, params_, kTokens);

  for (const std::vector<std::byte>& bytes : MadeObjectBytes(*sequence)) {
    const absl::StatusOr<ObjectView> view = ObjectView::Parse(bytes);
    ASSERT_THAT(view, IsOk());
    EXPECT_THAT(view->VerifyAll(), IsOk());
    EXPECT_EQ(view->header().variant(), params_.variant());
    EXPECT_EQ(view->header().profile, SequenceProfile());
  }
  const KvSequence::MadeObjects objects = sequence->made_objects();
  const size_t num_blocks = BlockTokensAfterPrefill(params_, kTokens) / kBlockTokens;
  ASSERT_EQ(objects.blocks.size(), num_blocks);
  const std::vector<Digest> ids = PrefixIds(SequenceProfile(), talk.tokens(kTokens));
  Digest parent;
  for (size_t i = 0; i < num_blocks; ++i) {
    const ObjectHeader& header = objects.blocks[i]->header();
    EXPECT_EQ(header.id, ids[i]);
    EXPECT_EQ(header.parent, parent);
    EXPECT_EQ(header.first_token, i * kBlockTokens);
    EXPECT_EQ(header.num_sinks, i == 0 ? params_.num_sinks : 0);
    EXPECT_EQ(header.table, objects.table == nullptr ? Digest{} : objects.table->header().id);
    parent = header.id;
  }
  EXPECT_EQ(objects.table != nullptr, params_.encoding.has_patterns);
  ASSERT_NE(objects.window, nullptr);
  const auto tail = talk.tokens(kTokens).subspan(num_blocks * kBlockTokens);
  EXPECT_EQ(objects.window->header().id, TailId(SequenceProfile(), parent, tail));
  EXPECT_EQ(objects.window->header().num_tokens, tail.size());
  EXPECT_EQ(sequence->num_tokens(), kTokens);
  EXPECT_EQ(sequence->window_tokens(), static_cast<int>(tail.size()));
}

TEST_P(KvSequencePresetTest, GoesOnFromItsStoredObjectsBitByBit) {
  constexpr int kPrompt = 2 * kBlockTokens + 77, kSteps = 2 * kBlockTokens;
  const Conversation talk(2, kPrompt + kSteps);
  const std::unique_ptr<KvSequence> sequence = MakeSequence(params_);
  Prefill(*sequence, talk, params_, kPrompt);
  Store(cache_, *sequence);

  const std::unique_ptr<KvSequence> rebuilt = MakeSequence(params_);
  ASSERT_THAT(
      Attach(*rebuilt, cache_, KeysOf(cache_, talk, params_, sequence->num_blocks(), kPrompt)),
      IsOk());
  int num_flushed = 0;
  for (int position = kPrompt; position < kPrompt + kSteps; ++position) {
    std::vector<float> expected, actual;
    const bool flushed = Step(*sequence, talk, params_, position, &expected);
    ASSERT_EQ(Step(*rebuilt, talk, params_, position, &actual), flushed);
    ASSERT_EQ(actual, expected) << "position " << position;
    if (!flushed) continue;
    ++num_flushed;
    ASSERT_EQ(MadeObjectBytes(*rebuilt), MadeObjectBytes(*sequence));
  }
  EXPECT_EQ(num_flushed, 2);
  EXPECT_EQ(rebuilt->num_tokens(), kPrompt + kSteps);
}

TEST_P(KvSequencePresetTest, IsRebuiltFromPrefillAndDecodeBlocks) {
  constexpr int kPrompt = kBlockTokens + 100, kSteps = 2 * kBlockTokens + 20;
  const Conversation talk(3, kPrompt + kSteps + 1);
  const std::unique_ptr<KvSequence> sequence = MakeSequence(params_);
  Prefill(*sequence, talk, params_, kPrompt);
  Store(cache_, *sequence);
  const int prefilled = sequence->num_blocks();
  for (int position = kPrompt; position < kPrompt + kSteps; ++position) {
    if (Step(*sequence, talk, params_, position)) Store(cache_, *sequence);
  }
  ASSERT_EQ(sequence->num_blocks(), prefilled + 2);
  // The rest of the window as an object of its own.
  ASSERT_THAT(
      sequence->StartBlocks(0, Phase::kDecode, talk.tokens(kPrompt + kSteps), /*with_window=*/true),
      IsOk());
  EncodeAll(*sequence);
  Store(cache_, *sequence);

  const std::unique_ptr<KvSequence> rebuilt = MakeSequence(params_);
  const StoredSequence stored =
      KeysOf(cache_, talk, params_, sequence->num_blocks(), kPrompt + kSteps);
  ASSERT_THAT(Attach(*rebuilt, cache_, stored), IsOk());
  EXPECT_EQ(Pass(*rebuilt, talk, kPrompt + kSteps, 1), Pass(*sequence, talk, kPrompt + kSteps, 1));
  EXPECT_EQ(rebuilt->block_headers(), sequence->block_headers());
  EXPECT_GT(rebuilt->received_bytes(), 0u);
  const bool has_table = params_.encoding.has_patterns;
  EXPECT_EQ(rebuilt->attached_table_bytes(), has_table ? cache_.Bytes(stored.keys[0]).size() : 0);
}

TEST_P(KvSequencePresetTest, GrowsTheBankByWhatDecodeBlocksAppend) {
  constexpr int kPrompt = kBlockTokens + 100, kSteps = 2 * kBlockTokens + 20;
  const Conversation talk(4, kPrompt + kSteps);
  const std::unique_ptr<KvSequence> sequence = MakeSequence(params_);
  Prefill(*sequence, talk, params_, kPrompt);
  const int prefilled = sequence->num_blocks();
  for (int position = kPrompt; position < kPrompt + kSteps; ++position) {
    Step(*sequence, talk, params_, position);
  }
  ASSERT_EQ(sequence->num_blocks(), prefilled + 2);
  // A prompt that leaves no block mines at the first flush: that block then appends nothing.
  int appending = 0;
  for (int block = 0; block < sequence->num_blocks(); ++block) {
    const ObjectHeader& header = sequence->block_headers()[block];
    const bool is_decode_block = block >= std::max(prefilled, 1);
    EXPECT_EQ((header.flags & kFlagAppendsK) != 0, is_decode_block && params_.append_k);
    EXPECT_EQ((header.flags & kFlagAppendsV) != 0, is_decode_block && params_.append_v);
    if (!params_.encoding.has_patterns) continue;
    EXPECT_EQ(header.num_patterns_k, params_.num_patterns_k + (params_.append_k ? appending : 0));
    EXPECT_EQ(header.num_patterns_v, params_.num_patterns_v + (params_.append_v ? appending : 0));
    appending += is_decode_block ? 1 : 0;
  }
  for (int layer = 0; layer < kSequenceShape.num_layers; ++layer) {
    const Codebook* codebook = sequence->codebook(prefilled, layer);
    ASSERT_EQ(codebook != nullptr, params_.encoding.has_patterns);
    if (codebook == nullptr) continue;
    EXPECT_EQ(codebook->num_k(), params_.num_patterns_k + (params_.append_k ? appending : 0));
    EXPECT_EQ(codebook->num_v(), params_.num_patterns_v + (params_.append_v ? appending : 0));
  }
}

TEST_P(KvSequencePresetTest, UsesTheTableOfAFetchedPrefixForTheRestOfThePrompt) {
  constexpr int kFirst = 3 * kBlockTokens, kSecond = 5 * kBlockTokens + 10;
  const Conversation talk(5, kSecond);
  const std::unique_ptr<KvSequence> first = MakeSequence(params_);
  Prefill(*first, talk, params_, kFirst);
  Store(cache_, *first);

  const std::unique_ptr<KvSequence> second = MakeSequence(params_);
  const int shared = first->num_blocks();
  ASSERT_THAT(Attach(*second, cache_, KeysOf(cache_, talk, params_, shared, shared * kBlockTokens)),
              IsOk());
  Prefill(*second, talk, params_, kSecond);
  EXPECT_EQ(second->made_objects().table, nullptr) << "mines nothing of its own";
  EXPECT_EQ(second->num_blocks(), BlockTokensAfterPrefill(params_, kSecond) / kBlockTokens);
  for (const ObjectHeader& header : second->block_headers()) {
    EXPECT_EQ(header.table, first->block_headers()[0].table);
  }
  Store(cache_, *second);
}

TEST_P(KvSequencePresetTest, MinesAtTheFirstFlushOfAShortPrompt) {
  constexpr int kPrompt = 40;
  const Conversation talk(6, 3 * kBlockTokens);
  const std::unique_ptr<KvSequence> sequence = MakeSequence(params_);
  Prefill(*sequence, talk, params_, kPrompt);
  EXPECT_EQ(sequence->num_blocks(), 0);
  EXPECT_EQ(sequence->made_objects().table, nullptr);
  Store(cache_, *sequence);

  const std::unique_ptr<KvSequence> rebuilt = MakeSequence(params_);
  ASSERT_THAT(Attach(*rebuilt, cache_, KeysOf(cache_, talk, params_, 0, kPrompt)), IsOk());
  int position = kPrompt;
  while (!Step(*sequence, talk, params_, position)) {
    ASSERT_FALSE(Step(*rebuilt, talk, params_, position));
    ASSERT_LT(++position, 3 * kBlockTokens);
  }
  ASSERT_TRUE(Step(*rebuilt, talk, params_, position));
  EXPECT_EQ(MadeObjectBytes(*rebuilt), MadeObjectBytes(*sequence));
  const KvSequence::MadeObjects objects = sequence->made_objects();
  ASSERT_EQ(objects.blocks.size(), 1u);
  const ObjectHeader& block = objects.blocks[0]->header();
  EXPECT_EQ(block.flags & (kFlagAppendsK | kFlagAppendsV), 0);
  EXPECT_EQ(block.num_sinks, params_.num_sinks);
  ASSERT_EQ(objects.table != nullptr, params_.encoding.has_patterns);
  if (objects.table == nullptr) return;
  EXPECT_EQ(objects.table->header().num_patterns_k, params_.num_patterns_k);
  EXPECT_EQ(block.table, objects.table->header().id);
}

TEST_P(KvSequencePresetTest, EncodesEqualBytesWhateverRanBeforeAndBesideIt) {
  constexpr int kTokens = 2 * kBlockTokens + 130;
  const Conversation a(7, kTokens), b(8, kTokens);
  const std::unique_ptr<KvSequence> alone = MakeSequence(params_);
  Prefill(*alone, a, params_, kTokens);

  ThreadPool pool(3);
  const std::unique_ptr<KvSequence> other = MakeSequence(params_, &pool);
  const std::unique_ptr<KvSequence> beside = MakeSequence(params_, &pool);
  Prefill(*other, b, params_, kTokens);
  Prefill(*beside, a, params_, kTokens);
  EXPECT_EQ(MadeObjectBytes(*beside), MadeObjectBytes(*alone));
  EXPECT_NE(MadeObjectBytes(*other), MadeObjectBytes(*alone));
}

TEST_P(KvSequencePresetTest, EncodesOneLayerWhileTheNextIsAttended) {
  constexpr int kTokens = 2 * kBlockTokens + 130;
  const Conversation talk(9, kTokens);
  const std::unique_ptr<KvSequence> in_turn = MakeSequence(params_), beside = MakeSequence(params_);
  Prefill(*in_turn, talk, params_, kTokens);

  const int blocks = BlockTokensAfterPrefill(params_, kTokens) / kBlockTokens;
  ASSERT_THAT(beside->StartBlocks(blocks, Phase::kPrefill, talk.tokens(kTokens), true), IsOk());
  ASSERT_THAT(AttendLayer(*beside, talk, 0, 0, kTokens), IsOk());
  absl::Status encoded;
  std::thread encoder([&] { encoded = beside->EncodeLayer(0); });
  const auto attended = AttendLayer(*beside, talk, 1, 0, kTokens);
  encoder.join();
  ASSERT_THAT(attended, IsOk());
  ASSERT_THAT(encoded, IsOk());
  ASSERT_THAT(beside->EncodeLayer(1), IsOk());
  ASSERT_THAT(beside->FinishBlocks(), IsOk());
  EXPECT_EQ(MadeObjectBytes(*beside), MadeObjectBytes(*in_turn));
}

// A stored sequence of three blocks and a window of 20 tokens, and one more token to attend from.
class KvSequenceAttachTest : public testing::Test {
 protected:
  static constexpr int kTokens = 3 * kBlockTokens + 20;

  void SetUp() override {
    const std::unique_ptr<KvSequence> sequence = MakeSequence(params_);
    Prefill(*sequence, talk_, params_, kTokens);
    Store(cache_, *sequence);
    stored_ = KeysOf(cache_, talk_, params_, 3, kTokens);
    ASSERT_EQ(stored_.num_tables, 1);
    ASSERT_EQ(stored_.num_window_tokens, 20);
  }

  // Stores the object again with another header.
  void Rewrite(const ObjectKey& key, const std::function<void(ObjectHeader&)>& change) {
    const std::vector<std::byte> bytes = cache_.Bytes(key);
    ObjectHeader header = *ParseHeader(bytes);
    change(header);
    absl::StatusOr<ObjectBuilder> builder = ObjectBuilder::Make(header);
    ASSERT_THAT(builder, IsOk());
    ASSERT_THAT(builder->Seal(), IsOk());
    cache_.Insert(builder->bytes());
  }
  absl::Status AttachStored() { return Attach(*sequence_, cache_, stored_); }

  const CodecParams params_ = Params("pkv2");
  const Conversation talk_{10, kTokens + 1};
  FakeCacheClient cache_;
  StoredSequence stored_;
  const std::unique_ptr<KvSequence> sequence_ = MakeSequence(params_);
};

TEST_F(KvSequenceAttachTest, AttendsToALayerWhileTheNextIsOnItsWay) {
  cache_.HoldLayersFrom(1);
  ASSERT_THAT(AttachStored(), IsOk());
  ASSERT_THAT(AttendLayer(*sequence_, talk_, 0, kTokens, 1), IsOk());
  absl::Status attended;
  std::thread late([&] { attended = AttendLayer(*sequence_, talk_, 1, kTokens, 1).status(); });
  cache_.WaitForBlockedReader();
  cache_.ReleaseLayers();
  late.join();
  EXPECT_THAT(attended, IsOk());
  EXPECT_EQ(sequence_->num_tokens(), kTokens + 1);
}

TEST_F(KvSequenceAttachTest, ReportsADamagedFrameWhenItsLayerIsAttendedOnly) {
  for (const ObjectKey& key : stored_.keys) {
    FakeCacheClient cache;
    for (const ObjectKey& other : stored_.keys) cache.Insert(cache_.Bytes(other));
    cache.Damage(key, 1);
    const std::unique_ptr<KvSequence> sequence = MakeSequence(params_);
    ASSERT_THAT(Attach(*sequence, cache, stored_), IsOk());
    EXPECT_THAT(AttendLayer(*sequence, talk_, 0, kTokens, 1), IsOk());
    EXPECT_THAT(AttendLayer(*sequence, talk_, 1, kTokens, 1),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("layer 1")));
  }
}

TEST_F(KvSequenceAttachTest, ReportsWhatIsNotStored) {
  cache_.Erase(stored_.keys[2]);
  EXPECT_THAT(AttachStored(), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(KvSequenceAttachTest, RefusesBlocksWithoutTheirTable) {
  stored_.keys.erase(stored_.keys.begin());
  stored_.num_tables = 0;
  EXPECT_THAT(AttachStored(), StatusIs(absl::StatusCode::kFailedPrecondition,
                                       HasSubstr("is not part of this sequence")));
}

TEST_F(KvSequenceAttachTest, RefusesBlocksOutOfOrder) {
  std::swap(stored_.keys[1], stored_.keys[2]);
  EXPECT_THAT(AttachStored(), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(KvSequenceAttachTest, RefusesObjectsOfAnotherModel) {
  for (const ObjectKey& key : stored_.keys) {
    if (key.kind == ObjectKind::kTable) continue;  // its id follows from the profile
    const std::vector<std::byte> original = cache_.Bytes(key);
    Rewrite(key, [](ObjectHeader& header) { header.profile.bytes[0] ^= 1; });
    EXPECT_THAT(Attach(*MakeSequence(params_), cache_, stored_),
                StatusIs(absl::StatusCode::kFailedPrecondition));
    cache_.Insert(original);
  }
  EXPECT_THAT(AttachStored(), IsOk());
}

TEST_F(KvSequenceAttachTest, RefusesAGeometryThatTheVariantDoesNotHave) {
  const ObjectKey& block = stored_.keys[1];
  const std::vector<std::byte> original = cache_.Bytes(block);
  const auto expect_refused = [&](const std::function<void(ObjectHeader&)>& change) {
    Rewrite(block, change);
    EXPECT_THAT(Attach(*MakeSequence(params_), cache_, stored_),
                StatusIs(absl::StatusCode::kFailedPrecondition));
    cache_.Insert(original);
  };
  expect_refused([](ObjectHeader& header) { header.num_layers = 1; });
  expect_refused([](ObjectHeader& header) { header.num_kv_heads = 1; });
  expect_refused([](ObjectHeader& header) { header.head_dim = 128; });
  expect_refused([](ObjectHeader& header) { header.bits_v = 4; });
  expect_refused([](ObjectHeader& header) { header.k_group_tokens = 32; });
  EXPECT_THAT(AttachStored(), IsOk());
}

TEST_F(KvSequenceAttachTest, RefusesAWindowOfAnotherLength) {
  Rewrite(stored_.keys.back(), [](ObjectHeader& header) { header.num_tokens = 21; });
  EXPECT_THAT(AttachStored(), StatusIs(absl::StatusCode::kFailedPrecondition,
                                       HasSubstr("holds 21 tokens, not 20")));
}

TEST_F(KvSequenceAttachTest, RefusesABrokenChainOfBanks) {
  Rewrite(stored_.keys[2], [](ObjectHeader& header) { ++header.num_patterns_k; });
  EXPECT_THAT(AttachStored(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("33+32 patterns")));
}

TEST(KvSequenceTest, RefusesAWindowThatNoObjectHolds) {
  const CodecParams params = Params("fp16");
  const std::unique_ptr<KvSequence> sequence = MakeSequence(params);
  const Conversation talk(11, 1);
  const std::vector<int32_t> tokens(kMaxWindowTokens + kBlockTokens + 1);
  const std::span<const int32_t> all(tokens);
  EXPECT_THAT(sequence->StartBlocks(1, Phase::kPrefill, all, /*with_window=*/true),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("window of 4097 tokens")));
  EXPECT_THAT(sequence->StartBlocks(1, Phase::kPrefill, all.first(all.size() - 1), true), IsOk());
  EXPECT_EQ(sequence->made_objects().window->header().num_tokens, kMaxWindowTokens);
}

TEST(KvSequenceTest, RefusesBlocksThatTheTokensDoNotFill) {
  const std::unique_ptr<KvSequence> sequence = MakeSequence(Params("fp16"));
  const std::vector<int32_t> tokens(2 * kBlockTokens);
  EXPECT_THAT(
      sequence->StartBlocks(2, Phase::kPrefill, std::span(tokens).first(tokens.size() - 1), false),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("255 tokens do not fill 2 blocks")));
  EXPECT_THAT(sequence->StartBlocks(2, Phase::kPrefill, tokens, false), IsOk());
}

TEST(KvSequenceTest, RefusesParamsThatDoNotFitTheShape) {
  KvSequence::Config config;
  config.shape = {1, 1, 64};
  config.params = Params("kivi2");
  config.params.encoding.v_group_channels = 128;
  EXPECT_THAT(KvSequence::Create(config), StatusIs(absl::StatusCode::kInvalidArgument));
  config.shape.head_dim = 96;
  EXPECT_THAT(KvSequence::Create(config), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(KvSequenceTest, RefusesValuesBeyondFp16) {
  const std::unique_ptr<KvSequence> sequence = MakeSequence(Params("fp16"));
  const std::vector<float> q(size_t{kSequenceQoHeads} * 64), v(128);
  std::vector<float> k(128), out(q.size());
  k[64] = 1e6f;
  EXPECT_THAT(sequence->Attend({0, 1, 0, q.data(), k.data(), v.data()}, out.data()),
              StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("kv head 1, channel 0")));
}

}  // namespace
}  // namespace pkv
