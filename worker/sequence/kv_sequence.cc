#include "worker/sequence/kv_sequence.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "pkv/block/prefix_hash.h"
#include "pkv/kernels/block_slots.h"
#include "pkv/kernels/key_feedback.h"
#include "pkv/kernels/pattern_miner.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "worker/engine/dense_attention.h"
#include "worker/sequence/kv_buffer.h"
#include "worker/sequence/object_place.h"

namespace pkv {
absl::StatusOr<std::unique_ptr<KvSequence>> KvSequence::Create(const Config& config) {
  PKV_RETURN_IF_ERROR(ValidateShape(config.shape));
  PKV_RETURN_IF_ERROR(config.params.Validate(config.shape));
  if (config.shared_patterns != nullptr) {
    const std::vector<Codebook>& layers = *config.shared_patterns;
    const bool fits = static_cast<int>(layers.size()) == config.shape.num_layers &&
                      layers.front().num_kv_heads() == config.shape.num_kv_heads &&
                      layers.front().head_dim() == config.shape.head_dim;
    if (!fits) {
      return absl::InvalidArgumentError(absl::StrCat("a shared table of ", layers.size(),
                                                     " layers is not this model's, which has ",
                                                     config.shape.num_layers));
    }
  }
  auto sequence = std::unique_ptr<KvSequence>(new KvSequence(config));
  PKV_ASSIGN_OR_RETURN(sequence->codec_,
                       MakeBlockCodec(config.shape, config.params, config.encode_ctx.device));
  return sequence;
}

KvSequence::KvSequence(const Config& config)
    : config_(config),
      banks_(config.shape),
      window_(config.shape),
      layer_loaded_(config.shape.num_layers, false) {
  if (config.params.feedback_k || config.params.encoding.k_fine_tokens > 0) RecordQueries();
}

void KvSequence::RecordQueries() {
  queries_.emplace(config_.shape.num_layers, config_.shape.num_kv_heads, config_.num_qo_heads,
                   config_.shape.head_dim);
}

absl::Status KvSequence::AttachPrefix(std::unique_ptr<GetStream> stream, int num_tables,
                                      int num_window_tokens) {
  PKV_CHECK(stream_ == nullptr && blocks_.empty() && window_.num_tokens() == 0);
  attached_ = Stopwatch();
  PKV_RETURN_IF_ERROR(stream->WaitForManifest());
  const bool has_window = num_window_tokens > 0;
  const int num_blocks = stream->num_objects() - num_tables - (has_window ? 1 : 0);
  const PlaceRules rules(config_.shape, config_.params, config_.profile);
  for (int i = 0; i < num_tables; ++i) {
    const ObjectHeader& header = stream->header(i);
    PKV_RETURN_IF_ERROR(rules.Check(header, {ObjectKind::kTable, 0, {}}));
    banks_.AddTable(header.id, header.num_patterns_k, header.num_patterns_v);
    attached_table_bytes_ += header.object_bytes;
  }
  Digest parent;
  for (int i = 0; i < num_blocks; ++i) {
    const ObjectHeader& header = stream->header(num_tables + i);
    PKV_RETURN_IF_ERROR(
        rules.Check(header, {ObjectKind::kBlock, uint64_t(i) * kBlockTokens, parent}));
    PKV_RETURN_IF_ERROR(banks_.AddBlock(header));
    parent = header.id;
    block_headers_.push_back(header);
    blocks_.push_back({nullptr, num_tables + i, {}});
  }
  if (has_window) {
    const ObjectHeader& header = stream->header(stream->num_objects() - 1);
    PKV_RETURN_IF_ERROR(
        rules.Check(header, {ObjectKind::kWindow, uint64_t(num_blocks) * kBlockTokens, parent}));
    if (header.num_tokens != num_window_tokens) {
      return absl::FailedPreconditionError(absl::StrCat("window ", header.id.ToShortHex(),
                                                        " holds ", header.num_tokens,
                                                        " tokens, not ", num_window_tokens));
    }
  }
  stream_ = std::move(stream);
  num_tables_ = num_tables;
  num_attached_blocks_ = num_blocks;
  stream_has_window_ = has_window;
  return absl::OkStatus();
}

std::span<const std::byte> KvSequence::FrameOf(const Block& block, int layer) const {
  return block.builder != nullptr ? std::span<const std::byte>(block.builder->frame(layer))
                                  : stream_->frame(block.object_index, layer);
}

absl::Status KvSequence::LoadLayer(int layer) {
  if (stream_ == nullptr || layer_loaded_[layer]) return absl::OkStatus();
  PKV_RETURN_IF_ERROR(stream_->WaitForLayer(layer));
  for (int i = 0; i < num_tables_; ++i) {
    PKV_ASSIGN_OR_RETURN(Codebook codebook,
                         Codebook::FromTable(stream_->header(i), stream_->frame(i, layer)));
    banks_.Find(stream_->header(i).id)->layers[layer] = std::move(codebook);
  }
  for (int i = 0; i < num_attached_blocks_; ++i) {
    const ObjectHeader& header = block_headers_[i];
    if ((header.flags & (kFlagAppendsK | kFlagAppendsV)) == 0) continue;
    Codebook& codebook = banks_.Find(header.table)->layers[layer];
    PKV_RETURN_IF_ERROR(codebook.AppendFromBlock(header, FrameOf(blocks_[i], layer)));
  }
  if (stream_has_window_) {
    const int window_index = stream_->num_objects() - 1;
    window_.AppendFrame(layer, stream_->header(window_index).num_tokens,
                        stream_->frame(window_index, layer));
  }
  layer_loaded_[layer] = true;
  prefix_seconds_ = attached_.Seconds();
  return absl::OkStatus();
}

absl::Status KvSequence::Attend(const LayerQkv& qkv, float* out) {
  PKV_RETURN_IF_ERROR(LoadLayer(qkv.layer));
  PKV_RETURN_IF_ERROR(window_.Append(qkv.layer, qkv.num_tokens, qkv.k, qkv.v));
  const std::vector<BlockPage> pages = this->pages(qkv.layer);
  AttentionArgs args;
  args.q = qkv.q;
  args.num_queries = qkv.num_tokens;
  args.num_qo_heads = config_.num_qo_heads;
  args.sm_scale = 1.0f / std::sqrt(static_cast<float>(config_.shape.head_dim));
  args.pages = pages;
  args.window = window_.layer(qkv.layer);
  args.out = out;
  std::vector<float> lse;
  if (queries_.has_value()) {
    lse.resize(size_t(qkv.num_tokens) * config_.num_qo_heads);
    args.lse = lse.data();
  }
  PKV_RETURN_IF_ERROR(qkv.num_tokens > 1 ? DenseAttention(args, config_.ctx.pool)
                                         : PagedAttention(args, config_.ctx));
  if (queries_.has_value()) queries_->Add(qkv, lse);
  // What was attended to may lie in the server's memory.
  return CheckHeld();
}

ObjectHeader KvSequence::HeaderOf(ObjectKind kind) const {
  return pkv::HeaderOf(kind, config_.shape, config_.params, config_.profile);
}

absl::Status KvSequence::StartWindow(std::span<const int32_t> tokens, int block_tokens) {
  const int num_tokens = static_cast<int>(tokens.size()) - block_tokens;
  if (num_tokens == 0) return absl::OkStatus();
  ObjectHeader header = HeaderOf(ObjectKind::kWindow);
  header.num_tokens = static_cast<uint16_t>(num_tokens);
  header.first_token = block_tokens;
  if (!started_.empty()) {
    header.parent = started_.back().builder->header().id;
  } else if (!block_headers_.empty()) {
    header.parent = block_headers_.back().id;
  }
  header.id = TailId(config_.profile, header.parent, tokens.subspan(block_tokens));
  PKV_ASSIGN_OR_RETURN(ObjectBuilder builder, ObjectBuilder::Make(header));
  window_object_ = std::make_unique<ObjectBuilder>(std::move(builder));
  return absl::OkStatus();
}

absl::Status KvSequence::StartBlocks(int count, Phase phase, std::span<const int32_t> tokens,
                                     bool with_window) {
  PKV_CHECK(started_.empty());
  const int first_block = num_blocks();
  const int block_tokens = (first_block + count) * kBlockTokens;
  if (block_tokens > static_cast<int>(tokens.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat(tokens.size(), " tokens do not fill ", first_block + count, " blocks"));
  }
  if (const size_t rest = tokens.size() - block_tokens; with_window && rest > kMaxWindowTokens) {
    return absl::InvalidArgumentError(absl::StrCat("a window of ", rest, " tokens; at most ",
                                                   kMaxWindowTokens, " can be handed off"));
  }
  phase_ = phase;
  num_finished_ = 0;
  window_object_.reset();
  table_object_.reset();

  const bool has_patterns = config_.params.encoding.has_patterns;
  if (count > 0 && has_patterns && banks_.Current() == nullptr) {
    // Every block is encoded against patterns mined here: sinks stay out, they are never quantized.
    const int mined_from = static_cast<int>(tokens.size()) - config_.params.num_sinks;
    const auto* shared = config_.shared_patterns.get();
    const int num_k = shared != nullptr ? shared->front().num_k()
                                        : std::min(config_.params.num_patterns_k, mined_from);
    const int num_v = shared != nullptr ? shared->front().num_v()
                                        : std::min(config_.params.num_patterns_v, mined_from);
    phase_ = Phase::kPrefill;
    ObjectHeader header = HeaderOf(ObjectKind::kTable);
    header.num_patterns_k = static_cast<uint16_t>(num_k);
    header.num_patterns_v = static_cast<uint16_t>(num_v);
    PKV_ASSIGN_OR_RETURN(ObjectBuilder builder, ObjectBuilder::Make(header));
    table_object_ = std::make_unique<ObjectBuilder>(std::move(builder));
    banks_.AddTable(Digest{}, num_k, num_v);
  }

  SequenceBanks::Bank* bank = has_patterns && count > 0 ? banks_.Current() : nullptr;
  Digest parent = block_headers_.empty() ? Digest{} : block_headers_.back().id;
  for (int i = 0; i < count; ++i) {
    const int first_token = (first_block + i) * kBlockTokens;
    PKV_ASSIGN_OR_RETURN(ObjectHeader header,
                         BlockHeaderOf(config_.shape, config_.params, config_.profile, first_token,
                                       parent, tokens.subspan(first_token, kBlockTokens)));
    parent = header.id;
    if (bank != nullptr) {
      header.num_patterns_k = static_cast<uint16_t>(bank->num_k);
      header.num_patterns_v = static_cast<uint16_t>(bank->num_v);
      header.table = bank->table;
      if (phase_ == Phase::kDecode) {
        if (config_.params.append_k && bank->num_k < kMaxPatterns) header.flags |= kFlagAppendsK;
        if (config_.params.append_v && bank->num_v < kMaxPatterns) header.flags |= kFlagAppendsV;
        PKV_RETURN_IF_ERROR(banks_.AddBlock(header));
      } else if (header.table.IsZero()) {
        // Mined here: the id follows from the content, known when every layer is. Any other value
        // keeps sizes right.
        header.table.bytes[0] = 1;
      }
    }
    PKV_ASSIGN_OR_RETURN(ObjectBuilder builder, ObjectBuilder::Make(header));
    Block block;
    block.builder = std::make_unique<ObjectBuilder>(std::move(builder));
    block.slots.resize(config_.shape.num_layers);
    started_.push_back(std::move(block));
  }
  return with_window ? StartWindow(tokens, block_tokens) : absl::OkStatus();
}

std::shared_ptr<const KeyFeedback> KvSequence::FeedbackOf(int layer) const {
  const CodecParams& params = config_.params;
  if (!params.feedback_k || queries_->num_vectors(layer) == 0) return nullptr;
  const int head_dim = config_.shape.head_dim;
  std::vector<float> moments = queries_->Moments(layer);
  if (params.encoding.rotated) RotateMoments(moments, head_dim);
  // A moment of few vectors says little about the directions they did not take.
  const double shrinkage = static_cast<double>(head_dim) / queries_->num_vectors(layer);
  return std::make_shared<const KeyFeedback>(
      MakeKeyFeedback(moments, head_dim, params.feedback_damping + shrinkage));
}

absl::Status KvSequence::EncodeBlock(int layer, const KvTensorView& kv, const KvTensorView& rotated,
                                     const std::shared_ptr<const KeyFeedback>& feedback,
                                     Codebook& codebook, Block& block) {
  const ObjectHeader& header = block.builder->header();
  const int num_fine = header.k_fine_tokens;
  std::vector<float> importance(size_t(kv.num_kv_heads) * kBlockTokens);
  if (num_fine > 0) {
    importance = queries_->Importance(layer, kv, static_cast<int64_t>(header.first_token));
  }
  std::vector<uint8_t>& slots = block.slots[layer];
  slots.clear();
  for (int head = 0; head < kv.num_kv_heads; ++head) {
    const auto of_head = std::span(importance).subspan(size_t(head) * kBlockTokens, kBlockTokens);
    const std::vector<uint8_t> own = ArrangeSlots(header.num_sinks, num_fine, of_head);
    slots.insert(slots.end(), own.begin(), own.end());
  }
  KvBuffer arranged(kv.num_kv_heads, kBlockTokens, kv.head_dim);
  GatherSlots(rotated, slots, arranged.view());

  PatternAssignment assignment;
  if (header.encoding().has_patterns) {
    if (phase_ == Phase::kDecode) {
      PKV_ASSIGN_OR_RETURN(const uint8_t appended,
                           AppendCentres(arranged.view(), header.num_sinks, config_.params,
                                         codebook, config_.encode_ctx));
      PKV_CHECK(appended == (header.flags & (kFlagAppendsK | kFlagAppendsV)), int{appended}, " ",
                int{header.flags});
    }
    PKV_ASSIGN_OR_RETURN(assignment,
                         AssignPatterns(arranged.view(), header.num_sinks, config_.params, codebook,
                                        phase_, config_.encode_ctx));
  }
  assignment.feedback = feedback;
  return codec_->Encode(header, arranged.view(), assignment, codebook, config_.encode_ctx,
                        block.builder->frame(layer));
}

void KvSequence::FillWindowFrame(int layer, const KvTensorView& window, int first) {
  const int num_tokens = window_object_->header().num_tokens;
  PKV_CHECK(window.num_tokens == first + num_tokens, window.num_tokens, " ", first, " ",
            num_tokens);
  const size_t bytes = size_t(num_tokens) * config_.shape.head_dim * sizeof(uint16_t);
  std::byte* out = window_object_->frame(layer).data();
  for (int h = 0; h < config_.shape.num_kv_heads; ++h) {
    std::memcpy(out + 2 * h * bytes, window.k_row(h, first), bytes);
    std::memcpy(out + (2 * h + 1) * bytes, window.v_row(h, first), bytes);
  }
}

absl::Status KvSequence::EncodeLayer(int layer) {
  const KvTensorView window = window_.layer(layer);
  const int count = static_cast<int>(started_.size());
  SequenceBanks::Bank* bank =
      config_.params.encoding.has_patterns && count > 0 ? banks_.Current() : nullptr;
  Codebook no_patterns(config_.shape.num_kv_heads, config_.shape.head_dim);
  Codebook& codebook = bank == nullptr ? no_patterns : bank->layers[layer];

  KvBuffer rotated_window;
  KvTensorView rotated = window;
  if (config_.params.encoding.rotated && count > 0) {
    // All that mining reads, or else the blocks' tokens alone.
    const int num_rotated = table_object_ != nullptr ? window.num_tokens : count * kBlockTokens;
    rotated_window = KvBuffer::Rotated(window.Tokens(0, num_rotated));
    rotated = rotated_window.view();
  }
  if (table_object_ != nullptr) {
    const Stopwatch stopwatch;
    const int sinks = config_.params.num_sinks;
    if (config_.shared_patterns != nullptr) {
      codebook = (*config_.shared_patterns)[layer];
    } else {
      PKV_ASSIGN_OR_RETURN(codebook, MinePatterns(rotated.Tokens(sinks, rotated.num_tokens - sinks),
                                                  config_.params, config_.encode_ctx));
    }
    PKV_RETURN_IF_ERROR(codebook.WriteTableFrame(table_object_->frame(layer)));
    mine_seconds_ += stopwatch.Seconds();
  }
  const Stopwatch stopwatch;
  const std::shared_ptr<const KeyFeedback> feedback = count > 0 ? FeedbackOf(layer) : nullptr;
  for (int i = 0; i < count; ++i) {
    PKV_RETURN_IF_ERROR(EncodeBlock(layer, window.Tokens(i * kBlockTokens, kBlockTokens),
                                    rotated.Tokens(i * kBlockTokens, kBlockTokens), feedback,
                                    codebook, started_[i]));
  }
  encode_seconds_ += stopwatch.Seconds();
  if (window_object_ != nullptr) FillWindowFrame(layer, window, count * kBlockTokens);
  return absl::OkStatus();
}

absl::Status KvSequence::FinishBlocks() {
  Digest table;
  if (table_object_ != nullptr) {
    PKV_RETURN_IF_ERROR(table_object_->Seal());
    table = table_object_->header().id;
    banks_.NameCurrent(table);
  }
  const int count = static_cast<int>(started_.size());
  for (Block& block : started_) {
    if (table_object_ != nullptr) block.builder->header().table = table;
    PKV_RETURN_IF_ERROR(block.builder->Seal());
    block_headers_.push_back(block.builder->header());
    blocks_.push_back(std::move(block));
  }
  started_.clear();
  num_finished_ = count;
  if (window_object_ != nullptr) PKV_RETURN_IF_ERROR(window_object_->Seal());
  if (window_.num_tokens() > 0) window_.DropFront(count * kBlockTokens);
  return absl::OkStatus();
}

KvSequence::LayerFrames KvSequence::layer_frames(int layer) {
  LayerFrames frames;
  for (const Block& block : started_) frames.blocks.push_back(block.builder->frame(layer));
  if (table_object_ != nullptr) frames.table = table_object_->frame(layer);
  if (window_object_ != nullptr) frames.window = window_object_->frame(layer);
  return frames;
}

std::vector<BlockPage> KvSequence::pages(int layer) {
  std::vector<BlockPage> pages;
  pages.reserve(blocks_.size());
  for (size_t i = 0; i < blocks_.size(); ++i) {
    pages.push_back(
        {&block_headers_[i], FrameOf(blocks_[i], layer), codebook(static_cast<int>(i), layer)});
  }
  return pages;
}

absl::Status KvSequence::DecodeBlock(int block_index, int layer,
                                     const MutableKvTensorView& kv_out) {
  const Block& block = blocks_[block_index];
  if (block.builder == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("block ", block_index, " was not encoded here: its order is not known"));
  }
  const ObjectHeader& header = block_headers_[block_index];
  const Codebook none(config_.shape.num_kv_heads, config_.shape.head_dim);
  const Codebook* codebook = this->codebook(block_index, layer);
  KvBuffer arranged(config_.shape.num_kv_heads, kBlockTokens, config_.shape.head_dim);
  PKV_RETURN_IF_ERROR(codec_->Decode(header, FrameOf(block, layer),
                                     codebook == nullptr ? none : *codebook, config_.encode_ctx,
                                     arranged.view()));
  if (header.encoding().rotated) arranged = KvBuffer::Rotated(arranged.view());
  ScatterSlots(arranged.view(), block.slots[layer], kv_out);
  return absl::OkStatus();
}

const Codebook* KvSequence::codebook(int block_index, int layer) {
  const SequenceBanks::Bank* bank = banks_.Find(block_headers_[block_index].table);
  return bank == nullptr ? nullptr : &bank->layers[layer];
}

KvSequence::MadeObjects KvSequence::made_objects() const {
  MadeObjects objects;
  for (const Block& block : started_) objects.blocks.push_back(block.builder.get());
  for (size_t i = blocks_.size() - num_finished_; i < blocks_.size(); ++i) {
    objects.blocks.push_back(blocks_[i].builder.get());
  }
  objects.window = window_object_.get();
  objects.table = table_object_.get();
  return objects;
}

}  // namespace pkv
