#ifndef PKV_TESTS_SUPPORT_DECODE_CASE_H_
#define PKV_TESTS_SUPPORT_DECODE_CASE_H_

// One decode step for tests of DecodeAttention: everything that DecodeAttentionArgs lead to, in one
// piece of memory that is copied to the device and back as a whole. Between the arrays, and in
// every place that a kernel must not read, stands poison; what a kernel may not write is compared
// after.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <ostream>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "pkv/kernels/decode_attention.h"
#include "proto/base/float16.h"
#include "proto/base/log.h"
#include "proto/block/fragment_order.h"
#include "proto/block/payload_layout.h"
#include "tests/support/tensor_gen.h"

namespace pkv {

struct DecodeRequest {
  int num_blocks = 0;
  int num_window_tokens = 0;
  int num_patterns_k = 0, num_patterns_v = 0;
};

// What a case is made from; equal specs make equal cases.
struct DecodeCaseSpec {
  uint64_t seed = 1;
  DecodeAttentionShape shape;
  std::vector<DecodeRequest> requests;
  int window_capacity = 256;
  int bank_capacity = 0;
  bool has_token = true;  // the token that q belongs to
  bool has_lse = true;
  // Widths of q, of decoded K and of decoded V.
  double q_width = 1, k_width = 1, v_width = 1;
  float sm_scale = 0;  // 0: 1 / sqrt(head_dim)
  uint8_t poison = 0xff;
  bool shares = true;  // some pages, sinks and banks stand for several requests
  // Cases of equal batch, capacities and `room_blocks`, which no request exceeds, have equal
  // arguments: every array at the same place.
  int room_blocks = 0;
  uint64_t placement_seed = 1;

  KvShape kv() const { return {1, shape.num_kv_heads, shape.head_dim}; }
  int heads_per_kv() const { return shape.num_qo_heads / shape.num_kv_heads; }
};

inline std::ostream& operator<<(std::ostream& os, const DecodeCaseSpec& s) {
  const Encoding& e = s.shape.encoding;
  os << "seed " << s.seed << ": K" << e.bits_k << "V" << e.bits_v << " groups " << e.k_group_tokens
     << "/" << e.v_group_channels << (e.k_fine_tokens > 0 ? " fine" : "")
     << (e.rotated ? " rotated" : "") << (e.has_patterns ? " patterns" : "") << " head_dim "
     << s.shape.head_dim << " heads " << s.shape.num_qo_heads << "/" << s.shape.num_kv_heads
     << " sinks " << s.shape.num_sinks
     << (s.shape.query_type == QueryType::kFloat16 ? " fp16" : " bf16")
     << (s.has_token ? " token" : "") << (s.has_lse ? " lse" : "") << " window capacity "
     << s.window_capacity << " bank capacity " << s.bank_capacity << " widths " << s.q_width << " "
     << s.k_width << " " << s.v_width << ", requests (blocks + window, patterns):";
  const size_t shown = std::min<size_t>(s.requests.size(), 8);
  for (size_t i = 0; i < shown; ++i) {
    const DecodeRequest& r = s.requests[i];
    os << " " << r.num_blocks << "+" << r.num_window_tokens << "," << r.num_patterns_k << "/"
       << r.num_patterns_v;
  }
  if (shown < s.requests.size()) os << " .. of " << s.requests.size();
  return os;
}

// TestRandom, quick enough for megabytes: numbers of a bell shape with deviation 1, from four
// uniform ones.
class BulkRandom : public TestRandom {
 public:
  using TestRandom::TestRandom;

  float Bell() {
    const uint64_t bits = Bits();
    const auto part = [bits](int i) { return static_cast<float>((bits >> (16 * i)) & 0xffff); };
    return (part(0) + part(1) + part(2) + part(3) - 131070.0f) * (1.7320508f / 65536.0f);
  }
  void FillBytes(std::span<std::byte> out) {
    size_t i = 0;
    for (; i + 8 <= out.size(); i += 8) {
      const uint64_t bits = Bits();
      std::memcpy(&out[i], &bits, 8);
    }
    for (; i < out.size(); ++i) out[i] = static_cast<std::byte>(Bits());
  }
  void FillBell(std::span<uint16_t> out, double width) {
    for (uint16_t& x : out) x = Half(static_cast<float>(width) * Bell());
  }
  static uint16_t Half(float x) { return FloatToFloat16(std::clamp(x, -kFloat16Max, kFloat16Max)); }
};

// The values of one kv head of a page, to read and to write one by one.
class PageOfHead {
 public:
  PageOfHead(const PayloadLayout& layout, std::byte* page, int kv_head)
      : layout_(layout), head_(page + kv_head * layout.head_bytes) {}

  void SetKCode(int slot, int channel, uint32_t code) {
    const Encoding& e = layout_.encoding;
    const int coarse = kBlockTokens - e.k_fine_tokens, d = layout_.head_dim;
    if (slot < coarse) {
      Put(layout_.k_codes, LocateCode(slot, channel, d, e.bits_k), e.bits_k, code);
    } else {
      Put(layout_.k_fine_codes, LocateCode(slot - coarse, channel, d, kFineBits), kFineBits, code);
    }
  }
  void SetVCode(int slot, int channel, uint32_t code) {
    const int bits = layout_.encoding.bits_v;
    Put(layout_.v_codes, LocateCode(channel, slot, kBlockTokens, bits), bits, code);
  }
  uint16_t& k_scale(int group, int channel) { return KParam(layout_.k_scales, group, channel); }
  uint16_t& k_zero(int group, int channel) { return KParam(layout_.k_zeros, group, channel); }
  uint16_t& v_scale(int group, int slot) {
    return Halves(layout_.v_scales)[group * kBlockTokens + RowPosition(slot, kBlockTokens)];
  }
  uint16_t& v_zero(int group, int slot) {
    return Halves(layout_.v_zeros)[group * kBlockTokens + ColumnPosition(slot, kBlockTokens)];
  }
  std::byte& k_id(int slot) { return head_[layout_.k_ids + RowPosition(slot, kBlockTokens)]; }
  std::byte& v_id(int slot) { return head_[layout_.v_ids + ColumnPosition(slot, kBlockTokens)]; }
  std::span<std::byte> bytes() { return {head_, static_cast<size_t>(layout_.head_bytes)}; }
  uint16_t* Halves(int64_t offset) { return reinterpret_cast<uint16_t*>(head_ + offset); }

 private:
  uint16_t& KParam(int64_t section, int group, int channel) {
    const int d = layout_.head_dim;
    return Halves(section)[group * d + ColumnPosition(channel, d)];
  }
  void Put(int64_t section, CodePosition at, int bits, uint32_t code) {
    uint32_t& word = reinterpret_cast<uint32_t*>(head_ + section)[at.word_index];
    word &= ~(((1u << bits) - 1) << at.shift);
    word |= code << at.shift;
  }

  const PayloadLayout& layout_;
  std::byte* head_;
};

// Where an array stands in the memory of a case.
struct DecodeArray {
  size_t begin = 0, bytes = 0;
};

class DecodeCase {
 public:
  explicit DecodeCase(const DecodeCaseSpec& spec)
      : spec_(spec), layout_(PayloadLayout::OfBlock(spec.kv(), spec.shape.encoding)) {
    BulkRandom placement(spec.placement_seed), random(spec.seed);
    PlaceArrays(placement);
    FillTables(random);
    FillRows(random);
    if (!used_pages_.empty()) FillPages(random);
  }

  const DecodeCaseSpec& spec() const { return spec_; }
  const PayloadLayout& layout() const { return layout_; }
  int batch() const { return static_cast<int>(spec_.requests.size()); }
  std::vector<std::byte>& memory() { return memory_; }
  const std::vector<std::byte>& memory() const { return memory_; }
  const DecodeArray& out_array() const { return out_; }
  const DecodeArray& lse_array() const { return lse_; }

  // The arguments, of a copy of memory() at `base`.
  DecodeAttentionArgs ArgsAt(std::byte* base) const {
    const Encoding& e = spec_.shape.encoding;
    DecodeAttentionArgs args = {
        .batch = batch(),
        .sm_scale = spec_.sm_scale != 0
                        ? spec_.sm_scale
                        : 1.0f / std::sqrt(static_cast<float>(spec_.shape.head_dim)),
        .q = base + q_.begin,
        .out = base + out_.begin,
        .lse = spec_.has_lse ? reinterpret_cast<float*>(base + lse_.begin) : nullptr,
        .pages = base + pages_.begin,
        .page_stride = page_stride_,
        .block_table = Ints(base, block_table_),
        .block_table_stride = block_table_stride_,
        .num_blocks = Ints(base, num_blocks_),
        .windows = reinterpret_cast<uint16_t*>(base + windows_.begin),
        .window_stride = window_stride_,
        .window_capacity = spec_.window_capacity,
        .window_ids = Ints(base, window_ids_),
        .num_window_tokens = Ints(base, num_window_tokens_)};
    if (spec_.has_token) {
      args.token_k = reinterpret_cast<const uint16_t*>(base + token_k_.begin);
      args.token_v = reinterpret_cast<const uint16_t*>(base + token_v_.begin);
    }
    if (spec_.shape.num_sinks > 0) {
      args.sinks = reinterpret_cast<const uint16_t*>(base + sinks_.begin);
      args.sink_stride = sink_stride_;
      args.sink_ids = Ints(base, sink_ids_);
    }
    if (e.has_patterns) {
      args.banks = reinterpret_cast<const uint16_t*>(base + banks_.begin);
      args.bank_stride = bank_stride_;
      args.bank_capacity = spec_.bank_capacity;
      args.bank_ids = Ints(base, bank_ids_);
      args.num_patterns = Ints(base, num_patterns_);
    }
    return args;
  }

  // Parts of memory(), to change a case after it was made.
  std::span<uint16_t> q(int request, int head) {
    return Row(q_, int64_t{request} * spec_.shape.num_qo_heads + head);
  }
  PageOfHead page(int request, int block, int kv_head) {
    return {layout_, memory_.data() + pages_.begin + PageOf(request, block) * page_stride_,
            kv_head};
  }
  std::span<std::byte> page_bytes(int request, int block) {
    return std::span(memory_).subspan(pages_.begin + PageOf(request, block) * page_stride_,
                                      layout_.page_bytes);
  }
  std::span<uint16_t> window_row(bool is_v, int request, int kv_head, int token) {
    const int64_t id = Ints(memory_.data(), window_ids_)[request];
    const int64_t row =
        (int64_t{is_v} * spec_.shape.num_kv_heads + kv_head) * spec_.window_capacity + token;
    return Row(windows_, row, id * window_stride_);
  }
  std::span<uint16_t> token_row(bool is_v, int request, int kv_head) {
    return Row(is_v ? token_v_ : token_k_, int64_t{request} * spec_.shape.num_kv_heads + kv_head);
  }
  std::span<uint16_t> sink_row(bool is_v, int request, int kv_head, int sink) {
    const int64_t id = Ints(memory_.data(), sink_ids_)[request];
    const int64_t row = (int64_t{kv_head} * 2 + is_v) * spec_.shape.num_sinks + sink;
    return Row(sinks_, row, id * sink_stride_);
  }
  std::span<uint16_t> bank_row(bool is_v, int request, int kv_head, int pattern) {
    const int64_t id = Ints(memory_.data(), bank_ids_)[request];
    const int64_t row =
        (int64_t{is_v} * spec_.shape.num_kv_heads + kv_head) * spec_.bank_capacity + pattern;
    return Row(banks_, row, id * bank_stride_);
  }

  // Which array holds byte `at` of memory(), for messages.
  std::string ArrayAt(size_t at) const {
    const std::pair<const char*, const DecodeArray*> arrays[] = {
        {"q", &q_},
        {"out", &out_},
        {"lse", &lse_},
        {"pages", &pages_},
        {"block_table", &block_table_},
        {"num_blocks", &num_blocks_},
        {"windows", &windows_},
        {"window_ids", &window_ids_},
        {"num_window_tokens", &num_window_tokens_},
        {"token_k", &token_k_},
        {"token_v", &token_v_},
        {"sinks", &sinks_},
        {"sink_ids", &sink_ids_},
        {"banks", &banks_},
        {"bank_ids", &bank_ids_},
        {"num_patterns", &num_patterns_},
    };
    std::string found = "before all arrays";
    for (const auto& [name, array] : arrays) {
      if (at < array->begin) continue;
      const size_t offset = at - array->begin;
      found = absl::StrCat(name, offset < array->bytes ? " + " : ", bytes after its end: ",
                           offset < array->bytes ? offset : offset - array->bytes);
    }
    return found;
  }

  // What memory() must be after a launch that wrote `after`: the output and lse are taken from
  // there, everything else but the token's place in the windows must not have changed.
  std::vector<std::byte> ExpectedAfter(const std::vector<std::byte>& after) const {
    std::vector<std::byte> want = memory_;
    const auto take = [&](const DecodeArray& array) {
      std::copy_n(after.begin() + array.begin, array.bytes, want.begin() + array.begin);
    };
    take(out_);
    if (spec_.has_lse) take(lse_);
    if (!spec_.has_token) return want;
    DecodeCase appended = *this;
    for (int r = 0; r < batch(); ++r) {
      for (int head = 0; head < spec_.shape.num_kv_heads; ++head) {
        for (const bool is_v : {false, true}) {
          const auto from = appended.token_row(is_v, r, head);
          const auto to = appended.window_row(is_v, r, head, spec_.requests[r].num_window_tokens);
          const size_t at = reinterpret_cast<std::byte*>(to.data()) - appended.memory_.data();
          std::memcpy(want.data() + at, from.data(), from.size_bytes());
        }
      }
    }
    return want;
  }

 private:
  static const int32_t* Ints(const std::byte* base, const DecodeArray& array) {
    return reinterpret_cast<const int32_t*>(base + array.begin);
  }
  int32_t* MutableInts(const DecodeArray& array) {
    return reinterpret_cast<int32_t*>(memory_.data() + array.begin);
  }
  std::span<uint16_t> Row(const DecodeArray& array, int64_t row, int64_t elements = 0) {
    const int d = spec_.shape.head_dim;
    auto* base = reinterpret_cast<uint16_t*>(memory_.data() + array.begin);
    return {base + elements + row * d, static_cast<size_t>(d)};
  }
  int64_t PageOf(int request, int block) const {
    return Ints(memory_.data(), block_table_)[request * block_table_stride_ + block];
  }

  // Every array starts behind at least 256 bytes of poison, on its alignment but on no larger one.
  DecodeArray Place(int64_t bytes, size_t alignment) {
    const size_t begin = (end_ + 256 + 2 * alignment - 1) / (2 * alignment) * 2 * alignment;
    const DecodeArray array = {begin + alignment, static_cast<size_t>(bytes)};
    end_ = array.begin + array.bytes;
    return array;
  }

  void PlaceArrays(BulkRandom& random) {
    const int64_t batch = this->batch(), d = spec_.shape.head_dim;
    const int64_t heads = spec_.shape.num_kv_heads, rows = 2 * heads * d;
    int64_t num_blocks = 0;
    for (const DecodeRequest& r : spec_.requests) {
      num_blocks += r.num_blocks;
      block_table_stride_ = std::max(block_table_stride_, r.num_blocks);
    }
    num_blocks = std::max(num_blocks, batch * spec_.room_blocks);
    block_table_stride_ = std::max(block_table_stride_, spec_.room_blocks) + random.Below(4);
    num_pages_ = static_cast<int>(num_blocks + num_blocks / 4 + 1);
    num_slabs_ = static_cast<int>(batch) + random.Below(3);
    page_stride_ = (layout_.page_bytes + 127) / 128 * 128 + 128 * random.Below(3);
    window_stride_ = rows * spec_.window_capacity + 8 * random.Below(4);
    sink_stride_ = rows * spec_.shape.num_sinks + 8 * random.Below(4);
    bank_stride_ = rows * spec_.bank_capacity + 8 * random.Below(4);
    q_ = Place(batch * spec_.shape.num_qo_heads * d * 2, 16);
    out_ = Place(static_cast<int64_t>(q_.bytes), 16);
    lse_ = Place(spec_.has_lse ? batch * spec_.shape.num_qo_heads * 4 : 0, 4);
    pages_ = Place(num_pages_ * page_stride_, 128);
    block_table_ = Place(batch * block_table_stride_ * 4, 4);
    num_blocks_ = Place(batch * 4, 4);
    windows_ = Place(num_slabs_ * window_stride_ * 2, 16);
    window_ids_ = Place(batch * 4, 4);
    num_window_tokens_ = Place(batch * 4, 4);
    token_k_ = Place(spec_.has_token ? batch * heads * d * 2 : 0, 16);
    token_v_ = Place(static_cast<int64_t>(token_k_.bytes), 16);
    sinks_ = Place(num_slabs_ * sink_stride_ * 2, 16);
    sink_ids_ = Place(batch * 4, 4);
    banks_ = Place(num_slabs_ * bank_stride_ * 2, 16);
    bank_ids_ = Place(batch * 4, 4);
    num_patterns_ = Place(batch * 8, 4);
    memory_.assign(end_ + 256, static_cast<std::byte>(spec_.poison));
  }

  std::vector<int32_t> Shuffled(int count, BulkRandom& random) const {
    std::vector<int32_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    for (int i = count - 1; i > 0; --i) std::swap(order[i], order[random.Below(i + 1)]);
    return order;
  }

  // Pages are shuffled, one in four stands in several places; every request has its own window,
  // some share sinks and banks.
  void FillTables(BulkRandom& random) {
    const std::vector<int32_t> order = Shuffled(num_pages_, random);
    const std::vector<int32_t> window_ids = Shuffled(num_slabs_, random);
    page_limits_.assign(num_pages_, {kMaxPatterns, kMaxPatterns});
    for (int r = 0; r < batch(); ++r) {
      const DecodeRequest& request = spec_.requests[r];
      PKV_CHECK(request.num_window_tokens + (spec_.has_token ? 1 : 0) <= spec_.window_capacity);
      PKV_CHECK(std::max(request.num_patterns_k, request.num_patterns_v) <= spec_.bank_capacity);
      MutableInts(num_blocks_)[r] = request.num_blocks;
      MutableInts(num_window_tokens_)[r] = request.num_window_tokens;
      MutableInts(window_ids_)[r] = window_ids[r];
      MutableInts(bank_ids_)[r] = spec_.shares ? random.Below(num_slabs_) : r;
      if (request.num_blocks > 0) {
        MutableInts(sink_ids_)[r] = spec_.shares ? random.Below(num_slabs_) : r;
      }
      MutableInts(num_patterns_)[2 * r] = request.num_patterns_k;
      MutableInts(num_patterns_)[2 * r + 1] = request.num_patterns_v;
      for (int b = 0; b < request.num_blocks; ++b) {
        const size_t used = used_pages_.size();
        const bool again = spec_.shares && used > 0 && random.Below(4) == 0;
        const int32_t page =
            again ? used_pages_[random.Below(static_cast<int>(used))] : order[used];
        if (!again) used_pages_.push_back(page);
        MutableInts(block_table_)[r * block_table_stride_ + b] = page;
        auto& [k, v] = page_limits_[page];
        k = std::min(k, request.num_patterns_k);
        v = std::min(v, request.num_patterns_v);
      }
    }
  }

  void FillRows(BulkRandom& random) {
    const bool is_half = spec_.shape.query_type == QueryType::kFloat16;
    for (int r = 0; r < batch(); ++r) {
      const DecodeRequest& request = spec_.requests[r];
      for (int head = 0; head < spec_.shape.num_qo_heads; ++head) {
        for (uint16_t& x : q(r, head)) {
          const float value = static_cast<float>(spec_.q_width) * random.Bell();
          x = is_half ? BulkRandom::Half(value)
                      : static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
        }
      }
      for (int head = 0; head < spec_.shape.num_kv_heads; ++head) {
        for (const bool is_v : {false, true}) {
          const double width = is_v ? spec_.v_width : spec_.k_width;
          for (int t = 0; t < request.num_window_tokens; ++t) {
            random.FillBell(window_row(is_v, r, head, t), width);
          }
          if (spec_.has_token) random.FillBell(token_row(is_v, r, head), width);
          for (int s = 0; s < spec_.shape.num_sinks && request.num_blocks > 0; ++s) {
            random.FillBell(sink_row(is_v, r, head, s), width);
          }
          if (!spec_.shape.encoding.has_patterns) continue;
          const int count = is_v ? request.num_patterns_v : request.num_patterns_k;
          for (int i = 0; i < count; ++i) random.FillBell(bank_row(is_v, r, head, i), width / 2);
        }
      }
    }
  }

  void FillPages(BulkRandom& random) {
    for (const int32_t page : used_pages_) {
      for (int head = 0; head < spec_.shape.num_kv_heads; ++head) {
        PageOfHead target(layout_, memory_.data() + pages_.begin + page * page_stride_, head);
        if (spec_.shape.encoding.is_fp16()) {
          const size_t half = static_cast<size_t>(layout_.v_codes) / 2;
          random.FillBell({target.Halves(0), half}, spec_.k_width);
          random.FillBell({target.Halves(layout_.v_codes), half}, spec_.v_width);
        } else {
          FillCodes(random, page_limits_[page], target);
        }
      }
    }
  }

  // Random codes; scales and zero points such that what they decode to has about the widths asked
  // for. Sinks' slots are filled like others: they must be masked.
  void FillCodes(BulkRandom& random, std::pair<int, int> limits, PageOfHead& target) {
    random.FillBytes(target.bytes().first(static_cast<size_t>(layout_.k_scales)));
    const Encoding& e = spec_.shape.encoding;
    const auto fill = [&](int64_t scales, int64_t zeros, int64_t bytes, int bits, double width) {
      const double reach = static_cast<double>((1 << bits) - 1);
      for (int64_t i = 0; i < bytes / 2; ++i) {
        const double scale = width * (1 + 3 * random.Uniform()) / reach;
        target.Halves(scales)[i] = BulkRandom::Half(static_cast<float>(scale));
        // A zero point belongs to another scale when the two lists have different orders: it need
        // not fit.
        const double zero = -width * (0.5 + 2 * random.Uniform());
        target.Halves(zeros)[i] = BulkRandom::Half(static_cast<float>(zero));
      }
    };
    fill(layout_.k_scales, layout_.k_zeros, layout_.k_zeros - layout_.k_scales, e.bits_k,
         spec_.k_width);
    fill(layout_.v_scales, layout_.v_zeros, layout_.v_zeros - layout_.v_scales, e.bits_v,
         spec_.v_width);
    if (!e.has_patterns) return;
    for (int slot = 0; slot < kBlockTokens; ++slot) {
      target.k_id(slot) = RandomId(random, limits.first);
      target.v_id(slot) = RandomId(random, limits.second);
    }
  }
  static std::byte RandomId(BulkRandom& random, int limit) {
    const bool is_raw = limit == 0 || random.Below(4) == 0;
    return static_cast<std::byte>(is_raw ? kRawPatternId : random.Below(limit));
  }

  const DecodeCaseSpec spec_;
  const PayloadLayout layout_;
  size_t end_ = 0;
  DecodeArray q_, out_, lse_, pages_, block_table_, num_blocks_, windows_, window_ids_,
      num_window_tokens_, token_k_, token_v_, sinks_, sink_ids_, banks_, bank_ids_, num_patterns_;
  int64_t page_stride_ = 0, window_stride_ = 0, sink_stride_ = 0, bank_stride_ = 0;
  int block_table_stride_ = 0, num_pages_ = 0, num_slabs_ = 0;
  std::vector<int32_t> used_pages_;
  std::vector<std::pair<int, int>> page_limits_;  // page: ids of K, of V, are below
  std::vector<std::byte> memory_;
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_DECODE_CASE_H_
