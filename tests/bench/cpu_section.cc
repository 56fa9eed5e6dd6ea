#include "tests/bench/cpu_section.h"

#include <chrono>
#include <cmath>
#include <functional>
#include <utility>

#include "pkv/kernels/block_codec.h"
#include "pkv/kernels/paged_attention.h"
#include "pkv/kernels/rotation.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

absl::StatusOr<SampleSummary> TimeSeconds(int repetitions,
                                          const std::function<absl::Status()>& work) {
  std::vector<double> seconds;
  for (int i = 0; i < repetitions + 1; ++i) {  // the first one warms up
    const auto begin = std::chrono::steady_clock::now();
    PKV_RETURN_IF_ERROR(work());
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    if (i > 0) seconds.push_back(taken.count());
  }
  return Summarize(std::move(seconds));
}

// Rotation, choice of patterns and encoding of every block, each by itself: a worker does them one
// after another.
class EncodeTiming {
 public:
  EncodeTiming(const SampleKv& kv, const EncodedSample& sample, const CpuTiming& timing)
      : kv_(kv), sample_(sample), timing_(timing), rows_(kv.kv) {
    if (!sample.params.encoding.rotated) return;
    RotateInto(rows_.k, rows_.k);
    RotateInto(rows_.v, rows_.v);
  }

  absl::StatusOr<std::vector<CpuRow>> Run() {
    const Encoding& encoding = sample_.params.encoding;
    std::vector<CpuRow> rows;
    if (encoding.rotated) {
      PKV_ASSIGN_OR_RETURN(rows.emplace_back(), Time("rotate", [this] { return Rotate(); }));
    }
    if (encoding.has_patterns) {
      PKV_ASSIGN_OR_RETURN(rows.emplace_back(), Time("assign", [this] { return Assign(); }));
    }
    PKV_ASSIGN_OR_RETURN(codec_, MakeBlockCodec({1, kv_.kv.num_kv_heads, kv_.kv.head_dim},
                                                sample_.params, Device::kCpu));
    frame_ = AlignedBuffer(sample_.rest[0].frame.size());
    PKV_ASSIGN_OR_RETURN(rows.emplace_back(), Time("encode", [this] { return Encode(false); }));
    if (!sample_.params.feedback_k) return rows;
    const auto feedback = std::make_shared<const KeyFeedback>(
        RandomKeyFeedback(1, kv_.kv.num_kv_heads, kv_.kv.head_dim));
    for (const EncodedBlock& block : sample_.rest) {
      assignments_.push_back(block.assignment);
      assignments_.back().feedback = feedback;
    }
    PKV_ASSIGN_OR_RETURN(rows.emplace_back(),
                         Time("encode with feedback", [this] { return Encode(true); }));
    return rows;
  }

 private:
  absl::StatusOr<CpuRow> Time(const char* what, const std::function<absl::Status()>& work) {
    CpuRow row{.preset = sample_.params.name, .what = what};
    row.bytes = static_cast<int64_t>(2 * kv_.kv.k.size() * sizeof(uint16_t));
    PKV_ASSIGN_OR_RETURN(row.seconds, TimeSeconds(timing_.repetitions, work));
    return row;
  }
  void RotateInto(const std::vector<uint16_t>& in, std::vector<uint16_t>& out) const {
    const int d = kv_.kv.head_dim;
    RotateFloat16Rows(in.data(), static_cast<int64_t>(in.size()) / d, d, out.data());
  }
  absl::Status Rotate() {
    RotateInto(kv_.kv.k, rows_.k);
    RotateInto(kv_.kv.v, rows_.v);
    return absl::OkStatus();
  }
  KvTensorView Block(size_t i) const {
    return rows_.view().Tokens(static_cast<int>(i) * kBlockTokens, kBlockTokens);
  }
  absl::Status Assign() {
    for (size_t i = 0; i < sample_.rest.size(); ++i) {
      PKV_RETURN_IF_ERROR(
          AssignPatterns(Block(i), 0, sample_.params, sample_.bank, Phase::kPrefill, {}).status());
    }
    return absl::OkStatus();
  }
  absl::Status Encode(bool with_feedback) {
    for (size_t i = 0; i < sample_.rest.size(); ++i) {
      const EncodedBlock& block = sample_.rest[i];
      PKV_RETURN_IF_ERROR(codec_->Encode(block.header, Block(i),
                                         with_feedback ? assignments_[i] : block.assignment,
                                         block.codebook, {}, frame_.span()));
    }
    return absl::OkStatus();
  }

  const SampleKv& kv_;
  const EncodedSample& sample_;
  const CpuTiming& timing_;
  TestTensor rows_;  // rotated as the blocks are
  std::unique_ptr<BlockCodec> codec_;
  std::vector<PatternAssignment> assignments_;  // with feedback
  AlignedBuffer frame_;
};

absl::StatusOr<CpuRow> TimeAttentionOf(int heads_per_kv, const SampleKv& kv,
                                       const EncodedSample& sample, const CpuTiming& timing) {
  CpuRow row{.preset = sample.params.name, .what = "attention", .heads_per_kv = heads_per_kv};
  std::vector<BlockPage> pages;
  for (const EncodedBlock& block : sample.rest) {
    // One bank for all, as a worker keeps it.
    pages.push_back({&block.header, block.frame.span(), &sample.bank});
    row.bytes += sample.page.page_bytes;
  }
  const int qo_heads = heads_per_kv * kv.kv.num_kv_heads, d = kv.kv.head_dim;
  std::vector<float> q, out(size_t(qo_heads) * d);
  for (int h = 0; h < qo_heads; ++h) {
    const float* from = kv.query(h / kv.num_qo_heads, h % kv.num_qo_heads);
    q.insert(q.end(), from, from + d);
  }
  AttentionArgs args;
  args.q = q.data();
  args.num_qo_heads = qo_heads;
  args.sm_scale = static_cast<float>(1 / std::sqrt(static_cast<double>(d)));
  args.pages = pages;
  args.window = kv.kv.view().Tokens(0, std::min(timing.window_tokens, kv.kv.num_tokens));
  args.out = out.data();
  PKV_ASSIGN_OR_RETURN(row.seconds,
                       TimeSeconds(timing.repetitions, [&] { return PagedAttention(args, {}); }));
  return row;
}

}  // namespace

absl::StatusOr<std::vector<CpuRow>> TimeCpu(const SampleKv& kv, const EncodedSample& sample,
                                            const CpuTiming& timing) {
  std::vector<CpuRow> rows;
  if (!sample.params.encoding.is_fp16()) {
    PKV_ASSIGN_OR_RETURN(rows, EncodeTiming(kv, sample, timing).Run());
  }
  for (const int heads_per_kv : {1, 4, 8}) {
    PKV_ASSIGN_OR_RETURN(rows.emplace_back(), TimeAttentionOf(heads_per_kv, kv, sample, timing));
  }
  return rows;
}

}  // namespace pkv
