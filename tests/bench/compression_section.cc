#include "tests/bench/compression_section.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "kernels/device/device_buffer.h"
#include "pkv/kernels/layer_compressor.h"
#include "proto/base/status_macros.h"
#include "tests/bench/gpu_timing.h"

namespace pkv {
namespace {

constexpr uint64_t kSeed = 1;
constexpr int kElementBytes = 2;

// What one call reads and writes.
struct LayerBuffers {
  DeviceBuffer k, v, pages, sinks, patterns;
  std::vector<DeviceBank> banks;  // of the flushes, each with counts of its own
  std::vector<WindowFlush> flushes;
};

class CompressionBench {
 public:
  CompressionBench(const SampleKv& kv, const EncodedSample& sample, const CompressionTiming& timing,
                   void* stream)
      : kv_(kv),
        sample_(sample),
        timing_(timing),
        stream_(stream),
        ctx_{.device = Device::kCuda, .stream = stream},
        heads_(kv.kv.num_kv_heads),
        head_dim_(kv.kv.head_dim),
        num_blocks_(timing.num_tokens / kBlockTokens) {}

  absl::StatusOr<std::vector<CompressionRow>> Run() {
    PKV_ASSIGN_OR_RETURN(compressor_, LayerCompressor::Make({1, heads_, head_dim_}, sample_.params,
                                                            timing_.num_tokens, ctx_));
    PKV_RETURN_IF_ERROR(MakeBuffers());
    const bool patterns = sample_.params.encoding.has_patterns;
    std::vector<CompressionRow> rows;
    PKV_ASSIGN_OR_RETURN(rows.emplace_back(), TimeLayer("encode", {.given_ids = patterns}));
    PKV_ASSIGN_OR_RETURN(rows.back().wrong_pages, CountWrongPages());
    if (patterns) {
      PKV_ASSIGN_OR_RETURN(rows.emplace_back(), TimeLayer("assign, encode", {}));
      PKV_ASSIGN_OR_RETURN(rows.emplace_back(), TimeLayer("mine, assign, encode", {.mine = true}));
    }
    if (sample_.params.feedback_k) {
      PKV_ASSIGN_OR_RETURN(rows.emplace_back(),
                           TimeLayer("all, feedback", {.mine = patterns, .feedback = true}));
    }
    PKV_ASSIGN_OR_RETURN(rows.emplace_back(), TimeFlush());
    PKV_RETURN_IF_ERROR(compressor_->CheckFinite(ctx_));
    return rows;
  }

 private:
  struct Stage {
    bool given_ids = false, mine = false, feedback = false;
  };

  template <typename T>
  absl::StatusOr<DeviceBuffer> Upload(const std::vector<T>& values) const {
    return DeviceBuffer::CopyOf(std::as_bytes(std::span(values)), stream_);
  }
  // The sample's rows over and over: [kv_head][num_tokens][head_dim].
  std::vector<uint16_t> Repeat(const std::vector<uint16_t>& rows) const {
    const size_t head_elements = size_t(timing_.num_tokens) * head_dim_;
    const size_t sample_elements = size_t(kv_.kv.num_tokens) * head_dim_;
    std::vector<uint16_t> out(heads_ * head_elements);
    for (int h = 0; h < heads_; ++h) {
      for (size_t at = 0; at < head_elements; at += sample_elements) {
        const size_t count = std::min(sample_elements, head_elements - at);
        std::copy_n(rows.begin() + h * sample_elements, count,
                    out.begin() + h * head_elements + at);
      }
    }
    return out;
  }
  // [kv_head][num_tokens], as the CPU chose them.
  std::vector<uint8_t> RepeatIds(bool is_v) const {
    std::vector<uint8_t> ids;
    for (int h = 0; h < heads_; ++h) {
      for (int b = 0; b < num_blocks_; ++b) {
        const PatternAssignment& chosen = sample_.rest[b % sample_.rest.size()].assignment;
        const uint8_t* from = (is_v ? chosen.v : chosen.k).data() + h * kBlockTokens;
        ids.insert(ids.end(), from, from + kBlockTokens);
      }
    }
    return ids;
  }
  // K [kv_head][capacity][head_dim], then V.
  std::vector<uint16_t> BankRows() const {
    std::vector<uint16_t> rows;
    for (const bool is_v : {false, true}) {
      for (int h = 0; h < heads_; ++h) {
        const std::span<const uint16_t> patterns = is_v ? sample_.bank.v(h) : sample_.bank.k(h);
        const size_t end = rows.size() + size_t{kMaxPatterns} * head_dim_;
        rows.insert(rows.end(), patterns.begin(), patterns.end());
        rows.resize(end);
      }
    }
    return rows;
  }

  absl::Status MakeBuffers() {
    const Encoding& encoding = sample_.params.encoding;
    const std::vector<uint16_t> k = Repeat(kv_.kv.k), v = Repeat(kv_.kv.v);
    std::vector<uint16_t> bank;
    if (encoding.has_patterns) {
      bank = BankRows();
      PKV_ASSIGN_OR_RETURN(k_ids_, Upload(RepeatIds(false)));
      PKV_ASSIGN_OR_RETURN(v_ids_, Upload(RepeatIds(true)));
    }
    if (sample_.params.feedback_k) {
      const KeyFeedback feedback = RandomKeyFeedback(kSeed, heads_, head_dim_);
      PKV_ASSIGN_OR_RETURN(order_, Upload(feedback.order));
      PKV_ASSIGN_OR_RETURN(weights_, Upload(feedback.weights));
      PKV_ASSIGN_OR_RETURN(scales_, Upload(feedback.scales));
      TestRandom random(kSeed);
      std::vector<float> importance(size_t(heads_) * timing_.num_tokens);
      for (float& x : importance) x = static_cast<float>(random.Uniform());
      PKV_ASSIGN_OR_RETURN(importance_, Upload(importance));
    }
    const int64_t input_bytes = 2 * static_cast<int64_t>(k.size()) * kElementBytes;
    page_stride_ = (sample_.page.page_bytes + 127) / 128 * 128;
    moved_bytes_ = input_bytes + num_blocks_ * sample_.page.page_bytes;
    copies_.resize(PlanCopies(moved_bytes_, timing_.l2_bytes));
    const size_t sink_bytes =
        size_t{2} * heads_ * sample_.params.num_sinks * head_dim_ * kElementBytes;
    for (LayerBuffers& copy : copies_) {
      PKV_ASSIGN_OR_RETURN(copy.k, Upload(k));
      PKV_ASSIGN_OR_RETURN(copy.v, Upload(v));
      PKV_ASSIGN_OR_RETURN(copy.patterns, Upload(bank));
      PKV_ASSIGN_OR_RETURN(copy.pages, DeviceBuffer::Make(num_blocks_ * page_stride_, stream_));
      PKV_ASSIGN_OR_RETURN(copy.sinks, DeviceBuffer::Make(sink_bytes, stream_));
    }
    return absl::OkStatus();
  }

  KvTensorView View(LayerBuffers& copy) const {
    return {copy.k.As<uint16_t>(),
            copy.v.As<uint16_t>(),
            heads_,
            timing_.num_tokens,
            head_dim_,
            int64_t{timing_.num_tokens} * head_dim_};
  }
  DeviceBank Bank(LayerBuffers& copy) const {
    return {copy.patterns.As<uint16_t>(), kMaxPatterns, sample_.bank.num_k(), sample_.bank.num_v()};
  }

  absl::StatusOr<CompressionRow> TimeLayer(const char* name, const Stage& stage) {
    CompressionRow row = Row(name);
    row.moved_bytes = moved_bytes_;
    const auto launch = [&](int i) {
      LayerBuffers& copy = copies_[i];
      DeviceBank bank = Bank(copy);
      LayerCompression layer;
      layer.kv = View(copy);
      // The CPU's ids and pages are of blocks without sinks.
      layer.at_start = !stage.given_ids;
      layer.mine = stage.mine;
      layer.bank = sample_.params.encoding.has_patterns ? &bank : nullptr;
      if (stage.given_ids) {
        layer.ids = {k_ids_.As<uint8_t>(), v_ids_.As<uint8_t>(), timing_.num_tokens};
      }
      if (stage.feedback) {
        layer.feedback = {order_.As<uint8_t>(), weights_.As<int8_t>(), scales_.As<float>()};
        layer.importance = importance_.As<float>();
      }
      layer.pages = copy.pages.data();
      layer.page_stride = page_stride_;
      layer.sinks = copy.sinks.As<uint16_t>();
      return compressor_->Compress(layer, ctx_);
    };
    PKV_RETURN_IF_ERROR(Time(launch, row));
    return row;
  }

  absl::StatusOr<CompressionRow> TimeFlush() {
    CompressionRow row = Row(absl::StrCat("flush of ", timing_.num_flushes, " windows"));
    row.num_tokens = timing_.num_flushes * kBlockTokens;
    row.moved_bytes = timing_.num_flushes * (moved_bytes_ / num_blocks_);
    const auto launch = [&](int i) {
      LayerBuffers& copy = copies_[i];
      copy.banks.assign(timing_.num_flushes, Bank(copy));
      copy.flushes.assign(timing_.num_flushes, {});
      for (int f = 0; f < timing_.num_flushes; ++f) {
        WindowFlush& flush = copy.flushes[f];
        flush.kv = View(copy).Tokens(f * kBlockTokens, kBlockTokens);
        if (sample_.params.encoding.has_patterns) flush.bank = &copy.banks[f];
        flush.page = copy.pages.data() + f * page_stride_;
      }
      return compressor_->Flush(copy.flushes, ctx_);
    };
    PKV_RETURN_IF_ERROR(Time(launch, row));
    return row;
  }

  CompressionRow Row(std::string stage) const {
    return {.preset = sample_.params.name,
            .stage = std::move(stage),
            .num_tokens = timing_.num_tokens,
            .num_kv_heads = heads_,
            .head_dim = head_dim_};
  }
  absl::Status Time(const std::function<absl::Status(int)>& launch, CompressionRow& row) {
    PKV_ASSIGN_OR_RETURN(
        const LaunchTimes times,
        TimeLaunches(stream_, static_cast<int>(copies_.size()), timing_.repetitions, launch));
    row.us = times.us;
    row.graph = times.graph;
    return absl::OkStatus();
  }

  // Pages of the first copy that differ from the CPU's.
  absl::StatusOr<int> CountWrongPages() {
    std::vector<std::byte> pages(copies_[0].pages.size());
    PKV_RETURN_IF_ERROR(copies_[0].pages.CopyToHost(pages));
    int wrong = 0;
    for (int b = 0; b < num_blocks_; ++b) {
      const std::byte* expected = sample_.rest[b % sample_.rest.size()].frame.data();
      const std::byte* written = pages.data() + b * page_stride_;
      if (std::memcmp(written, expected, sample_.page.page_bytes) != 0) ++wrong;
    }
    return wrong;
  }

  const SampleKv& kv_;
  const EncodedSample& sample_;
  const CompressionTiming& timing_;
  void* stream_;
  ComputeContext ctx_;
  int heads_, head_dim_, num_blocks_;
  int64_t page_stride_ = 0, moved_bytes_ = 0;
  std::unique_ptr<LayerCompressor> compressor_;
  std::vector<LayerBuffers> copies_;
  DeviceBuffer k_ids_, v_ids_, order_, weights_, scales_, importance_;
};

}  // namespace

absl::StatusOr<std::vector<CompressionRow>> TimeCompression(const SampleKv& kv,
                                                            const EncodedSample& sample,
                                                            const CompressionTiming& timing,
                                                            void* stream) {
  return CompressionBench(kv, sample, timing, stream).Run();
}

}  // namespace pkv
