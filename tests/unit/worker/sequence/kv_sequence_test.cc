#include "worker/sequence/kv_sequence.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "pkv/block/prefix_hash.h"
#include "tests/support/attention_reference.h"
#include "tests/unit/worker/sequence/sequence_driver.h"
#include "worker/engine/dense_attention.h"
#include "worker/sequence/window_flush.h"

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
                         testing::Values("fp16", "kivi2", "kivi4-g32", "pkv2", "pkv4", "default",
                                         "default4"),
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
  // Objects do not carry the queries that later blocks of some presets are encoded by.
  if (sequence->queries() != nullptr) rebuilt->AdoptQueries(*sequence->queries());
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
  if (sequence->queries() != nullptr) rebuilt->AdoptQueries(*sequence->queries());
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

TEST_P(KvSequencePresetTest, AttendsToItsBlocksWithinTheBoundOfTheirNumbers) {
  constexpr int kTokens = 3 * kBlockTokens + 45;
  const Conversation talk(12, kTokens);
  const std::unique_ptr<KvSequence> sequence = MakeSequence(params_);
  Prefill(*sequence, talk, params_, kTokens);
  std::vector<float> out(size_t{kSequenceQoHeads} * kSequenceShape.head_dim);
  for (int layer = 0; layer < kSequenceShape.num_layers; ++layer) {
    const std::vector<BlockPage> pages = sequence->pages(layer);
    AttentionArgs args;
    args.q = talk.Qkv(layer, 7, 1).q;
    args.num_qo_heads = kSequenceQoHeads;
    args.sm_scale = 0.125f;
    args.pages = pages;
    args.window = sequence->window(layer);
    args.out = out.data();
    const AttentionReference want = ComputeAttentionReference(args);
    const auto expect_near = [&](const char* name) {
      for (size_t i = 0; i < out.size(); ++i) {
        ASSERT_LE(std::abs(out[i] - want.out[i]), want.out_bound[i]) << name << " value " << i;
      }
    };
    // Paged in a decode step, from codes; dense in a prefill, from tiles.
    ASSERT_THAT(PagedAttention(args, {}), IsOk());
    expect_near("paged");
    ASSERT_THAT(DenseAttention(args, nullptr), IsOk());
    expect_near("dense");
  }
}

// K and V of one kv head of tokens, as fp64 rows.
std::vector<std::vector<double>> RowsOf(const uint16_t* bits, int count) {
  std::vector<std::vector<double>> rows(count);
  for (int t = 0; t < count; ++t) {
    for (int j = 0; j < kSequenceShape.head_dim; ++j) {
      rows[t].push_back(Float16ToFloat(bits[t * kSequenceShape.head_dim + j]));
    }
  }
  return rows;
}
double SquaredDistance(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t j = 0; j < a.size(); ++j) sum += (a[j] - b[j]) * (a[j] - b[j]);
  return sum;
}

// Every decoded token is nearer to its own original than to any other.
void ExpectOrder(const uint16_t* original, const uint16_t* decoded) {
  const auto in = RowsOf(original, kBlockTokens), out = RowsOf(decoded, kBlockTokens);
  for (int t = 0; t < kBlockTokens; ++t) {
    const double own = SquaredDistance(out[t], in[t]);
    for (int other = 0; other < kBlockTokens; ++other) {
      ASSERT_LE(own, SquaredDistance(out[t], in[other]))
          << "token " << t << " is rather token " << other;
    }
  }
}

TestTensor Copy(const KvTensorView& kv) {
  TestTensor out(kv.num_kv_heads, kv.num_tokens, kv.head_dim);
  const int64_t head_size = int64_t{kv.num_tokens} * kv.head_dim;
  for (int head = 0; head < kv.num_kv_heads; ++head) {
    std::copy_n(kv.k_row(head, 0), head_size, out.k.begin() + head * head_size);
    std::copy_n(kv.v_row(head, 0), head_size, out.v.begin() + head * head_size);
  }
  return out;
}

// A block of one layer, decoded.
TestTensor Decoded(KvSequence& sequence, int block, int layer) {
  TestTensor out(kSequenceShape.num_kv_heads, kBlockTokens, kSequenceShape.head_dim);
  EXPECT_THAT(sequence.DecodeBlock(block, layer, out.view()), IsOk());
  return out;
}

// Presets whose errors are smaller than the distances of these tokens.
TEST(KvSequenceQueriesTest, DecodesTokensInTheirOrder) {
  constexpr int kTokens = 4 * kBlockTokens;
  const Conversation talk(13, kTokens);
  for (const char* preset : {"fp16", "kivi4-g32", "pkv4", "default", "default4"}) {
    const CodecParams params = Params(preset);
    const std::unique_ptr<KvSequence> sequence = MakeSequence(params);
    Pass(*sequence, talk, 0, kTokens);
    const TestTensor original = Copy(sequence->window(1));  // before blocks take tokens out
    const int blocks = BlockTokensAfterPrefill(params, kTokens) / kBlockTokens;
    ASSERT_THAT(EncodeBlocks(blocks, Phase::kPrefill, talk.tokens(kTokens), *sequence), IsOk());
    for (int block = 0; block < blocks; ++block) {
      const TestTensor decoded = Decoded(*sequence, block, 1);
      const KvTensorView want = original.view().Tokens(block * kBlockTokens, kBlockTokens);
      for (int head = 0; head < kSequenceShape.num_kv_heads; ++head) {
        SCOPED_TRACE(absl::StrCat(preset, " block ", block, " head ", head));
        ExpectOrder(want.k_row(head, 0), decoded.view().k_row(head, 0));
        ExpectOrder(want.v_row(head, 0), decoded.view().v_row(head, 0));
      }
    }
  }
}

// Mean squared error of K of some tokens of a decoded block.
double KeyError(const TestTensor& decoded, const KvTensorView& original, int first, int end) {
  double sum = 0;
  for (int head = 0; head < kSequenceShape.num_kv_heads; ++head) {
    const auto in = RowsOf(original.k_row(head, 0), kBlockTokens);
    const auto out = RowsOf(decoded.view().k_row(head, 0), kBlockTokens);
    for (int t = first; t < end; ++t) sum += SquaredDistance(out[t], in[t]) / (end - first);
  }
  return sum;
}

TEST(KvSequenceQueriesTest, EncodesWithoutAnyQuery) {
  constexpr int kTokens = 3 * kBlockTokens;
  const TestTensor tensor =
      RandomTensor(14, kSequenceShape.num_kv_heads, kTokens, kSequenceShape.head_dim);
  const std::vector<int32_t> tokens(kTokens, 1);
  for (const char* preset : {"default", "default4"}) {
    const CodecParams params = Params(preset);
    const std::unique_ptr<KvSequence> silent = MakeSequence(params), empty = MakeSequence(params);
    empty->AdoptQueries(QueryRecord(kSequenceShape.num_layers, kSequenceShape.num_kv_heads,
                                    kSequenceQoHeads, kSequenceShape.head_dim));
    for (KvSequence* sequence : {silent.get(), empty.get()}) {
      for (int layer = 0; layer < kSequenceShape.num_layers; ++layer) {
        sequence->AppendKv(layer, tensor.view());
      }
      ASSERT_THAT(EncodeBlocks(2, Phase::kPrefill, tokens, *sequence), IsOk());
    }
    EXPECT_EQ(MadeObjectBytes(*silent), MadeObjectBytes(*empty));
    // No token is more important than another: the first ones behind the sinks get the fine codes.
    if (params.encoding.k_fine_tokens == 0) continue;
    for (const int block : {0, 1}) {
      const int fine = block == 0 ? params.num_sinks : 0, coarse = fine + kFineTokens;
      const TestTensor decoded = Decoded(*silent, block, 0);
      const KvTensorView original = tensor.view().Tokens(block * kBlockTokens, kBlockTokens);
      EXPECT_LT(KeyError(decoded, original, fine, coarse),
                KeyError(decoded, original, coarse, kBlockTokens) / 4);
    }
  }
}

TEST(KvSequenceQueriesTest, GivesFineCodesToTheTokensThatQueriesLookAt) {
  constexpr int kTokens = 3 * kBlockTokens, kFirst = kBlockTokens + 60, kChannel = 5;
  const int d = kSequenceShape.head_dim;
  TestTensor tensor = RandomTensor(15, kSequenceShape.num_kv_heads, kTokens, d);
  // One channel tells 16 tokens of block 1 from all others, and queries look at it alone.
  for (size_t i = kChannel; i < tensor.k.size(); i += d) {
    const int token = static_cast<int>(i / d) % kTokens;
    const bool looked_at = token >= kFirst && token < kFirst + kFineTokens;
    tensor.k[i] = FloatToFloat16(looked_at ? 3.0f : -3.0f);
  }
  std::vector<float> q(size_t{kSequenceQoHeads} * d), lse(kSequenceQoHeads, 6.0f);
  for (size_t i = kChannel; i < q.size(); i += d) q[i] = 8;  // scores 3 and -3
  QueryRecord record(kSequenceShape.num_layers, kSequenceShape.num_kv_heads, kSequenceQoHeads, d);
  CodecParams params = Params("default");
  params.feedback_k = false;  // which would look after that channel in every token
  const std::unique_ptr<KvSequence> sequence = MakeSequence(params);
  for (int layer = 0; layer < kSequenceShape.num_layers; ++layer) {
    // Sampled: the position after it is a multiple of the stride.
    record.Add({layer, 1, kTokens - 1 + kBlockTokens, q.data(), nullptr, nullptr}, lse);
    sequence->AppendKv(layer, std::as_const(tensor).view());
  }
  sequence->AdoptQueries(record);
  const std::vector<int32_t> tokens(kTokens, 1);
  ASSERT_THAT(EncodeBlocks(2, Phase::kPrefill, tokens, *sequence), IsOk());
  const TestTensor decoded = Decoded(*sequence, 1, 0);
  const KvTensorView original = std::as_const(tensor).view().Tokens(kBlockTokens, kBlockTokens);
  const int first = kFirst - kBlockTokens;
  EXPECT_LT(KeyError(decoded, original, first, first + kFineTokens),
            KeyError(decoded, original, 0, first) / 4);
}

TEST(KvSequenceQueriesTest, RecordsQueriesOfAnyPresetWhenAsked) {
  constexpr int kTokens = 40;
  const Conversation talk(16, kTokens);
  const auto recording = MakeSequence(Params("fp16")), silent = MakeSequence(Params("fp16"));
  EXPECT_EQ(recording->queries(), nullptr);
  EXPECT_NE(MakeSequence(Params("default"))->queries(), nullptr);
  recording->RecordQueries();
  silent->AdoptQueries(*recording->queries());
  EXPECT_EQ(silent->queries(), nullptr) << "keeps none, so takes none";
  EXPECT_EQ(Pass(*recording, talk, 0, kTokens - 1), Pass(*silent, talk, 0, kTokens - 1));
  EXPECT_EQ(Pass(*recording, talk, kTokens - 1, 1), Pass(*silent, talk, kTokens - 1, 1));
  for (int layer = 0; layer < kSequenceShape.num_layers; ++layer) {
    EXPECT_EQ(recording->queries()->num_vectors(layer),
              kTokens * kSequenceQoHeads / kSequenceShape.num_kv_heads);
  }
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

// Frames may lie in the server's memory: an output made of what was no longer there is none.
TEST_F(KvSequenceAttachTest, ReportsFramesThatWereTakenBack) {
  ASSERT_THAT(AttachStored(), IsOk());
  ASSERT_THAT(AttendLayer(*sequence_, talk_, 0, kTokens, 1), IsOk());
  cache_.TakeBack();
  EXPECT_THAT(AttendLayer(*sequence_, talk_, 1, kTokens, 1), StatusIs(absl::StatusCode::kAborted));
}

TEST_F(KvSequenceAttachTest, ReportsWhatIsNotStored) {
  cache_.Erase(stored_.keys[2]);
  EXPECT_THAT(AttachStored(), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(KvSequenceAttachTest, DecodesNoBlockThatWasEncodedElsewhere) {
  ASSERT_THAT(AttachStored(), IsOk());
  ASSERT_THAT(AttendLayer(*sequence_, talk_, 0, kTokens, 1), IsOk());
  TestTensor out(kSequenceShape.num_kv_heads, kBlockTokens, kSequenceShape.head_dim);
  EXPECT_THAT(
      sequence_->DecodeBlock(1, 0, out.view()),
      StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("block 1 was not encoded")));
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
