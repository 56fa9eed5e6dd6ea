#include "worker/eval/shared_table.h"

#include "pkv/kernels/pattern_miner.h"
#include "proto/base/status_macros.h"
#include "worker/sequence/kv_buffer.h"

namespace pkv {
namespace {

constexpr int kFirstToken = 64;  // no preset quantizes more sinks

}  // namespace

absl::StatusOr<CalibrationKv> ComputeCalibrationKv(const ModelHost& host,
                                                   std::span<const Passage> passages,
                                                   int prefix_tokens, int stride) {
  const KvShape shape = host.config().kv_shape();
  PKV_ASSIGN_OR_RETURN(const CodecParams fp16, PresetByName("fp16", shape));
  const std::unique_ptr<LlamaModel> model = host.MakeReplica();
  CalibrationKv kv(shape);
  for (const Passage& passage : passages) {
    PKV_ASSIGN_OR_RETURN(const std::unique_ptr<KvSequence> sequence,
                         host.MakeReplicaSequence(fp16));
    const auto prefix = std::span<const int32_t>(passage.tokens).first(prefix_tokens);
    PKV_RETURN_IF_ERROR(model->Forward(prefix, 0, *sequence, prefix_tokens, nullptr));
    for (int layer = 0; layer < shape.num_layers; ++layer) {
      const KvTensorView window = sequence->window(layer);
      for (int t = kFirstToken; t < prefix_tokens; t += stride) {
        kv.AppendKv(layer, window.Tokens(t, 1));
      }
    }
  }
  return kv;
}

absl::StatusOr<std::shared_ptr<const std::vector<Codebook>>> MineSharedTable(
    const CalibrationKv& kv, int num_layers, const CodecParams& params, ThreadPool* pool) {
  auto table = std::make_shared<std::vector<Codebook>>();
  ComputeContext ctx;
  ctx.pool = pool;
  for (int layer = 0; layer < num_layers; ++layer) {
    KvBuffer rotated;
    KvTensorView tokens = kv.layer(layer);
    if (params.encoding.rotated) {
      rotated = KvBuffer::Rotated(tokens);
      tokens = rotated.view();
    }
    PKV_ASSIGN_OR_RETURN(table->emplace_back(), MinePatterns(tokens, params, ctx));
  }
  return table;
}

}  // namespace pkv
