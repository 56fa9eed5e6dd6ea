#ifndef PKV_WORKER_SEQUENCE_KV_SEQUENCE_H_
#define PKV_WORKER_SEQUENCE_KV_SEQUENCE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/block/object_builder.h"
#include "pkv/block/object_view.h"
#include "pkv/client/cache_client.h"
#include "pkv/kernels/block_codec.h"
#include "pkv/kernels/codec_params.h"
#include "pkv/kernels/paged_attention.h"
#include "worker/engine/attention_sink.h"
#include "worker/sequence/bank.h"
#include "worker/sequence/fp16_window.h"
#include "worker/sequence/query_record.h"
#include "worker/sequence/stopwatch.h"

namespace pkv {

// The KV cache of one request: blocks as they were shipped or encoded, then an fp16 window.
//
// As AttentionSink it takes K and V of new tokens into the window and attends over everything.
// Blocks leave the window in three steps, StartBlocks, EncodeLayer for every layer, FinishBlocks:
// after a prefill (EncodeLayer of layer L may run while layer L + 1 is computed) and while
// decoding.
//
// Thread-compatible, but EncodeLayer(L) may run on another thread once Attend of layer L of the
// same pass has returned.
class KvSequence final : public AttentionSink {
 public:
  struct Config {
    KvShape shape;
    int num_qo_heads = 0;
    CodecParams params;
    Digest profile;             // ModelProfile digest
    ComputeContext ctx;         // for attention
    ComputeContext encode_ctx;  // for mining and encoding
    // [layer]: the table of every prompt, mined beforehand; null: each prompt mines its own.
    std::shared_ptr<const std::vector<Codebook>> shared_patterns;
  };
  static absl::StatusOr<std::unique_ptr<KvSequence>> Create(const Config& config);

  // Takes over a prefix on its way: `stream` holds `num_tables` tables, then blocks 0.. in order,
  // then, when `num_window_tokens` is positive, the window object with so many tokens. Attend()
  // waits for each layer when it first needs it. After an error the sequence is of no more use.
  // REQUIRES: the sequence is empty.
  //   errors of WaitForManifest
  //   FailedPrecondition  not an unbroken chain of this profile, geometry and variant
  absl::Status AttachPrefix(std::unique_ptr<GetStream> stream, int num_tables,
                            int num_window_tokens);

  absl::Status Attend(const LayerQkv& qkv, float* out) override;

  // Takes K and V computed elsewhere, in place of Attend, into one layer's window. Call for every
  // layer, with the same tokens.
  void AppendKv(int layer, const KvTensorView& kv) { window_.AppendKv(layer, kv); }
  // Keeps a record of the queries from now on, as sequences of presets that encode by it do anyway.
  void RecordQueries();
  // Starts from the record of the queries that computed what AppendKv brought.
  void AdoptQueries(const QueryRecord& queries) {
    if (queries_.has_value()) queries_ = queries;
  }
  // Null without a record.
  const QueryRecord* queries() const { return queries_.has_value() ? &*queries_ : nullptr; }
  // The fp16 tokens after the last block. Valid until the layer next changes.
  KvTensorView window(int layer) const { return window_.layer(layer); }

  const Config& config() const { return config_; }
  // Tokens cached, all layers done.
  int64_t num_tokens() const { return int64_t{num_blocks()} * kBlockTokens + window_.num_tokens(); }
  int num_blocks() const { return static_cast<int>(blocks_.size()); }
  int window_tokens() const { return window_.num_tokens(); }

  // Reserves `count` new blocks for the next 128 `count` tokens. `tokens` are the ids of the whole
  // sequence so far, at least up to the last block's end; they name the blocks. With `with_window`
  // the tokens after them, up to tokens.size(), become a window object. Tokens need not be in the
  // window yet: EncodeLayer needs them.
  //   InvalidArgument  fewer tokens than the blocks need, or a window of more than
  //   kMaxWindowTokens;
  //                    nothing was changed
  absl::Status StartBlocks(int count, Phase phase, std::span<const int32_t> tokens,
                           bool with_window);
  // Mines if this sequence has no table yet, assigns and encodes one layer of the blocks started,
  // and fills the window object's frame.
  absl::Status EncodeLayer(int layer);
  // Frames of one layer of what StartBlocks made: for whoever computes and encodes elsewhere, in
  // place of Attend and EncodeLayer, and fills them before FinishBlocks. Empty where nothing was
  // made.
  struct LayerFrames {
    std::vector<std::span<std::byte>> blocks;
    std::span<std::byte> table, window;
  };
  LayerFrames layer_frames(int layer);
  // Seals the blocks (and the table, if mined, and the window object) and takes their tokens out of
  // the window, if they stand there.
  absl::Status FinishBlocks();

  // What the last StartBlocks made. Frames are valid after EncodeLayer, heads after FinishBlocks.
  struct MadeObjects {
    std::vector<const ObjectBuilder*> blocks;
    const ObjectBuilder* window = nullptr;  // null without one
    const ObjectBuilder* table = nullptr;   // null unless mined by this StartBlocks
  };
  MadeObjects made_objects() const;

  // All blocks in one layer, as attention reads them. Valid until a block is started.
  std::vector<BlockPage> pages(int layer);
  // Decodes one layer of a block that was encoded here: [num_kv_heads, 128, head_dim] fp16 in token
  // order, not rotated. FailedPrecondition: the block came from elsewhere, and its order did not.
  absl::Status DecodeBlock(int block_index, int layer, const MutableKvTensorView& kv_out);
  // The patterns that block `block_index` refers to in `layer`; null without patterns.
  const Codebook* codebook(int block_index, int layer);
  // Headers of all blocks, in order.
  const std::vector<ObjectHeader>& block_headers() const { return block_headers_; }
  // Seconds spent in EncodeLayer so far: mining, and assigning plus encoding.
  double mine_seconds() const { return mine_seconds_; }
  double encode_seconds() const { return encode_seconds_; }
  uint64_t received_bytes() const { return stream_ == nullptr ? 0 : stream_->received_bytes(); }
  // Of the pattern tables that came with the prefix.
  uint64_t attached_table_bytes() const { return attached_table_bytes_; }
  // Waits until this layer of the prefix has arrived. OK without a prefix.
  absl::Status WaitForLayer(int layer) { return LoadLayer(layer); }
  // As GetStream::CheckHeld(), for whoever reads pages() of the prefix. OK without one.
  absl::Status CheckHeld() const {
    return stream_ == nullptr ? absl::OkStatus() : stream_->CheckHeld();
  }
  // Seconds from AttachPrefix to the arrival of the last layer that was needed.
  double prefix_seconds() const { return prefix_seconds_; }

 private:
  explicit KvSequence(const Config& config);

  // Where the frames of a block are: in a builder of ours, or in the stream.
  struct Block {
    std::unique_ptr<ObjectBuilder> builder;
    int object_index = -1;
    std::vector<std::vector<uint8_t>> slots;  // [layer] -> [kv_head][slot] token; with a builder
  };

  absl::Status LoadLayer(int layer);
  std::span<const std::byte> FrameOf(const Block& block, int layer) const;
  ObjectHeader HeaderOf(ObjectKind kind) const;
  absl::Status EncodeBlock(int layer, const KvTensorView& kv, const KvTensorView& rotated,
                           const std::shared_ptr<const KeyFeedback>& feedback, Codebook& codebook,
                           Block& block);
  void FillWindowFrame(int layer, const KvTensorView& window, int first);
  std::shared_ptr<const KeyFeedback> FeedbackOf(int layer) const;
  absl::Status StartWindow(std::span<const int32_t> tokens, int block_tokens);

  const Config config_;
  std::unique_ptr<BlockCodec> codec_;
  SequenceBanks banks_;
  Fp16Window window_;
  std::optional<QueryRecord> queries_;
  std::vector<Block> blocks_;
  std::vector<ObjectHeader> block_headers_;

  std::unique_ptr<GetStream> stream_;  // null without a fetched prefix
  int num_tables_ = 0;
  int num_attached_blocks_ = 0;
  bool stream_has_window_ = false;
  uint64_t attached_table_bytes_ = 0;
  std::vector<bool> layer_loaded_;

  // Between StartBlocks and FinishBlocks; the window and table builders stay until the next
  // StartBlocks.
  Phase phase_ = Phase::kPrefill;
  std::vector<Block> started_;
  std::unique_ptr<ObjectBuilder> window_object_;
  std::unique_ptr<ObjectBuilder> table_object_;
  int num_finished_ = 0;  // of the last StartBlocks, at the end of blocks_
  double mine_seconds_ = 0, encode_seconds_ = 0, prefix_seconds_ = 0;
  Stopwatch attached_;  // since AttachPrefix
};

}  // namespace pkv

#endif  // PKV_WORKER_SEQUENCE_KV_SEQUENCE_H_
