#ifndef PKV_TESTS_SUPPORT_DECODE_LATTICE_H_
#define PKV_TESTS_SUPPORT_DECODE_LATTICE_H_

// Decode cases of small integers and powers of two, which every kernel computes without rounding:
// the output must then be one value and no other, and says what was read from the wrong place.

#include <vector>

#include "tests/support/decode_case.h"

namespace pkv {

// A token of a request, by its place in the order of DecodeAttentionArgs.
struct TokenPlace {
  enum Kind { kSlot, kRow, kSink, kWindow, kToken } kind = kSlot;
  int block = 0;
  int index = 0;  // slot, or row of its kind

  static TokenPlace Of(const DecodeCaseSpec& spec, int request, int token) {
    const DecodeRequest& r = spec.requests[request];
    const int coded = r.num_blocks * kBlockTokens;
    if (token >= coded + r.num_window_tokens) return {kToken, 0, 0};
    if (token >= coded) return {kWindow, 0, token - coded};
    const int block = token / kBlockTokens, slot = token % kBlockTokens;
    if (spec.shape.encoding.is_fp16()) return {kRow, block, slot};
    return {block == 0 && slot < spec.shape.num_sinks ? kSink : kSlot, block, slot};
  }
};

inline int NumTokens(const DecodeCaseSpec& spec, int request) {
  const DecodeRequest& r = spec.requests[request];
  return r.num_blocks * kBlockTokens + r.num_window_tokens + (spec.has_token ? 1 : 0);
}

// V of coded slots and of rows: multiples of 1/2 below 64, exact in bf16 too.
class LatticeValues {
 public:
  LatticeValues(DecodeCase& of, uint64_t seed) : case_(of), random_(seed) {
    for (int r = 0; r < of.batch(); ++r) {
      for (int head = 0; head < of.spec().shape.num_kv_heads; ++head) Fill(r, head);
    }
  }

 private:
  static uint16_t Halves(int count) { return FloatToFloat16(0.5f * static_cast<float>(count)); }
  uint16_t Random() { return Halves(random_.Below(33) - 16); }

  void Fill(int request, int head) {
    const DecodeCaseSpec& spec = case_.spec();
    for (int token = 0; token < NumTokens(spec, request); ++token) {
      const TokenPlace place = TokenPlace::Of(spec, request, token);
      if (place.kind == TokenPlace::kSlot) {
        FillSlot(request, head, place);
        continue;
      }
      for (uint16_t& x : Row(request, head, place)) x = Random();
    }
    if (!spec.shape.encoding.has_patterns || spec.requests[request].num_blocks == 0) return;
    for (int i = 0; i < spec.requests[request].num_patterns_v; ++i) {
      for (uint16_t& x : case_.bank_row(true, request, head, i)) x = Random();
    }
  }
  std::span<uint16_t> Row(int request, int head, const TokenPlace& place) {
    const size_t d = case_.spec().shape.head_dim;
    switch (place.kind) {
      case TokenPlace::kSink:
        return case_.sink_row(true, request, head, place.index);
      case TokenPlace::kWindow:
        return case_.window_row(true, request, head, place.index);
      case TokenPlace::kToken:
        return case_.token_row(true, request, head);
      default:
        return {
            case_.page(request, place.block, head).Halves(case_.layout().v_codes) + place.index * d,
            d};
    }
  }
  // Scales 1/2, 1 and 2: with 4-bit codes, values up to 38.
  void FillSlot(int request, int head, const TokenPlace& place) {
    const Encoding& e = case_.spec().shape.encoding;
    const int d = case_.spec().shape.head_dim;
    PageOfHead page = case_.page(request, place.block, head);
    for (int group = 0; group < d / e.v_group_channels; ++group) {
      page.v_scale(group, place.index) = Halves(1 << random_.Below(3));
      page.v_zero(group, place.index) = Halves(random_.Below(17) - 8);
    }
    for (int j = 0; j < d; ++j) page.SetVCode(place.index, j, random_.Below(1 << e.bits_v));
  }

  DecodeCase& case_;
  TestRandom random_;
};

// K such that every query head scores one token about 200 above all others, by one channel: head g
// of a kv head looks along channel_of(g) alone, where only token_of(g) has anything.
class OneHotKeys {
 public:
  // `by_pattern`: coded tokens stand out by their K pattern, else by their code.
  OneHotKeys(DecodeCase& of, uint64_t seed, bool by_pattern)
      : case_(of), spec_(of.spec()), random_(seed), by_pattern_(by_pattern) {
    for (int r = 0; r < of.batch(); ++r) {
      for (int head = 0; head < spec_.shape.num_kv_heads; ++head) {
        ClearKeys(r, head);
        for (int g = 0; g < spec_.heads_per_kv(); ++g) {
          const int token = token_of(r, head, g), channel = channel_of(r, head, g);
          Raise(r, head, g, TokenPlace::Of(spec_, r, token), channel);
          SetQuery(r, head, g, channel);
        }
      }
    }
  }

  // Tokens of a head group are all different, and so are their channels.
  int token_of(int request, int head, int g) const {
    return (request * 37 + head * 11 + g * 61 + 5) % NumTokens(spec_, request);
  }
  int channel_of(int request, int head, int g) const {
    return (request * 5 + head * 3 + g * 9) % spec_.shape.head_dim;
  }

 private:
  static constexpr float kFar = 64;  // q times scale
  static uint16_t Half(float x) { return FloatToFloat16(x); }

  bool IsWatched(int request, int head, int channel) const {
    for (int g = 0; g < spec_.heads_per_kv(); ++g) {
      if (channel_of(request, head, g) == channel) return true;
    }
    return false;
  }
  // K scale of a channel: 1/2, 1 or 2.
  static float Scale(int channel) { return 0.5f * static_cast<float>(1 << (channel % 3)); }
  // The patterns that raise a token, one for each query head.
  int PatternOf(int request, int g) const {
    return (request * 7 + g) % spec_.requests[request].num_patterns_k;
  }
  bool IsRaisingPattern(int request, int id) const {
    for (int g = 0; g < spec_.heads_per_kv(); ++g) {
      if (PatternOf(request, g) == id) return true;
    }
    return false;
  }

  // Watched channels are 0 for every token; the others hold anything.
  void ClearKeys(int r, int head) {
    const int d = spec_.shape.head_dim, num_patterns = spec_.requests[r].num_patterns_k;
    for (int token = 0; token < NumTokens(spec_, r); ++token) {
      const TokenPlace place = TokenPlace::Of(spec_, r, token);
      if (place.kind == TokenPlace::kSlot) {
        ClearSlot(r, head, place);
        continue;
      }
      const std::span<uint16_t> row = Row(r, head, place);
      for (int j = 0; j < d; ++j) {
        // Natural rows beside rotated queries: anything but 0 would have to be rotated.
        const bool is_zero = IsWatched(r, head, j) || IsNatural(place);
        row[j] = Half(is_zero ? 0.0f : static_cast<float>(random_.Below(5) - 2));
      }
    }
    if (!spec_.shape.encoding.has_patterns || spec_.requests[r].num_blocks == 0) return;
    for (int i = 0; i < num_patterns; ++i) {
      const std::span<uint16_t> row = case_.bank_row(false, r, head, i);
      for (int j = 0; j < d; ++j) {
        row[j] = Half(IsWatched(r, head, j) ? 0.0f : static_cast<float>(random_.Below(5) - 2));
      }
    }
  }
  void ClearSlot(int r, int head, const TokenPlace& place) {
    const Encoding& e = spec_.shape.encoding;
    PageOfHead page = case_.page(r, place.block, head);
    const bool is_fine = place.index >= kBlockTokens - e.k_fine_tokens;
    const int bits = is_fine ? kFineBits : e.bits_k;
    for (int j = 0; j < spec_.shape.head_dim; ++j) {
      page.k_scale(place.index / e.k_group_tokens, j) = Half(Scale(j));
      page.k_zero(place.index / e.k_group_tokens, j) = 0;
      // Fine code 3 is 0: their grid starts one scale lower, in steps of a third.
      const int none = is_fine ? 3 : 0;
      page.SetKCode(place.index, j, IsWatched(r, head, j) ? none : random_.Below(1 << bits));
    }
    if (!e.has_patterns) return;
    int id = std::to_integer<int>(page.k_id(place.index));
    if (by_pattern_ && IsRaisingPattern(r, id)) id = kRawPatternId;
    page.k_id(place.index) = static_cast<std::byte>(id);
  }

  bool IsNatural(const TokenPlace& place) const {
    return spec_.shape.encoding.rotated &&
           (place.kind == TokenPlace::kWindow || place.kind == TokenPlace::kToken);
  }

  void Raise(int r, int head, int g, const TokenPlace& place, int channel) {
    const Encoding& e = spec_.shape.encoding;
    if (IsNatural(place)) {
      const std::span<uint16_t> row = Row(r, head, place);
      for (int j = 0; j < spec_.shape.head_dim; ++j) {
        row[j] = Half(Float16ToFloat(row[j]) + Sign(j, channel));
      }
    } else if (place.kind != TokenPlace::kSlot) {
      Row(r, head, place)[channel] = Half(8);
    } else if (by_pattern_) {
      const int id = PatternOf(r, g);
      case_.page(r, place.block, head).k_id(place.index) = static_cast<std::byte>(id);
      case_.bank_row(false, r, head, id)[channel] = Half(8);
    } else {
      const bool is_fine = place.index >= kBlockTokens - e.k_fine_tokens;
      case_.page(r, place.block, head)
          .SetKCode(place.index, channel, (1u << (is_fine ? kFineBits : e.bits_k)) - 1);
    }
  }

  void SetQuery(int r, int head, int g, int channel) {
    const int d = spec_.shape.head_dim;
    const std::span<uint16_t> q = case_.q(r, head * spec_.heads_per_kv() + g);
    for (int j = 0; j < d; ++j) {
      float value = j == channel ? kFar / Scale(channel) : 0.0f;
      if (spec_.shape.encoding.rotated) {
        value = Sign(j, channel) * kFar / Scale(channel) / std::sqrt(static_cast<float>(d));
      }
      q[j] = spec_.shape.query_type == QueryType::kFloat16
                 ? Half(value)
                 : static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
    }
  }
  static float Sign(int i, int j) {
    return std::popcount(static_cast<unsigned>(i & j)) % 2 == 0 ? 1.0f : -1.0f;
  }

  std::span<uint16_t> Row(int r, int head, const TokenPlace& place) {
    const size_t d = spec_.shape.head_dim;
    switch (place.kind) {
      case TokenPlace::kSink:
        return case_.sink_row(false, r, head, place.index);
      case TokenPlace::kWindow:
        return case_.window_row(false, r, head, place.index);
      case TokenPlace::kToken:
        return case_.token_row(false, r, head);
      default:
        return {case_.page(r, place.block, head).Halves(0) + place.index * d, d};
    }
  }

  DecodeCase& case_;
  const DecodeCaseSpec& spec_;
  TestRandom random_;
  const bool by_pattern_;
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_DECODE_LATTICE_H_
