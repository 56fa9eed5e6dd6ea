#include "tests/bench/attention_case.h"

#include <algorithm>
#include <random>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "proto/base/status_macros.h"
#include "proto/block/payload_layout.h"

namespace pkv {
namespace {

constexpr int kThousand = 1024;         // "k" of a context
constexpr int kMaxBatch = 4096;         // beyond what any table here asks for
constexpr int kMaxContext = 16 << 20;   // 16M tokens: 43 GB of fp16 for 8 heads of 128
constexpr int64_t kReuseBytes = 300e6;  // KERNELS.md: buffers rotate over at least 300 MB
constexpr int64_t kBytesPerFloat16 = 2;

absl::StatusOr<int> ParseCount(absl::string_view what, absl::string_view text, int max) {
  int value = 0;
  if (absl::SimpleAtoi(text, &value) && value >= 1 && value <= max) return value;
  return absl::InvalidArgumentError(absl::StrCat(what, " '", text, "' not in 1..", max));
}

absl::Status ParseOption(absl::string_view option, AttentionCase& result) {
  if (option == "mixed") {
    result.mixed = true;
    return absl::OkStatus();
  }
  const struct {
    absl::string_view prefix;
    int* value;
    int max;
  } numbers[] = {{"q=", &result.num_qo_heads, 1024},
                 {"kv=", &result.num_kv_heads, kMaxKvHeads},
                 {"d=", &result.head_dim, 128}};
  for (const auto& number : numbers) {
    absl::string_view text = option;
    if (!absl::ConsumePrefix(&text, number.prefix)) continue;
    PKV_ASSIGN_OR_RETURN(*number.value, ParseCount(number.prefix, text, number.max));
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", option, "' is none of q=HEADS, kv=HEADS, d=HEAD_DIM, mixed"));
}

// fp16 K and V of one token in all heads.
int64_t TokenBytes(const AttentionCase& c) {
  return 2 * kBytesPerFloat16 * c.num_kv_heads * c.head_dim;
}

int64_t CountTokens(const std::vector<RequestLength>& lengths) {
  int64_t tokens = 0;
  for (const RequestLength& length : lengths) {
    tokens += int64_t{length.num_blocks} * kBlockTokens + length.num_window_tokens;
  }
  return tokens;
}

}  // namespace

std::string AttentionCase::Name() const {
  const AttentionCase defaults;
  std::string name = absl::StrCat(batch, "x");
  if (context_tokens % kThousand == 0) {
    absl::StrAppend(&name, context_tokens / kThousand, "k");
  } else {
    absl::StrAppend(&name, context_tokens);
  }
  if (num_qo_heads != defaults.num_qo_heads) absl::StrAppend(&name, ",q=", num_qo_heads);
  if (num_kv_heads != defaults.num_kv_heads) absl::StrAppend(&name, ",kv=", num_kv_heads);
  if (head_dim != defaults.head_dim) absl::StrAppend(&name, ",d=", head_dim);
  if (mixed) absl::StrAppend(&name, ",mixed");
  return name;
}

absl::StatusOr<AttentionCase> ParseAttentionCase(absl::string_view text) {
  const std::vector<absl::string_view> parts = absl::StrSplit(text, ',');
  const std::vector<absl::string_view> size = absl::StrSplit(parts[0], 'x');
  if (size.size() != 2) {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "' does not begin BATCHxCONTEXT"));
  }
  AttentionCase result;
  PKV_ASSIGN_OR_RETURN(result.batch, ParseCount("batch", size[0], kMaxBatch));
  absl::string_view context = size[1];
  const int unit = absl::ConsumeSuffix(&context, "k") ? kThousand : 1;
  PKV_ASSIGN_OR_RETURN(result.context_tokens, ParseCount("context", context, kMaxContext / unit));
  result.context_tokens *= unit;
  for (size_t i = 1; i < parts.size(); ++i) {
    PKV_RETURN_IF_ERROR(ParseOption(parts[i], result));
  }
  PKV_RETURN_IF_ERROR(ValidateShape(result.kv_shape()));
  if (result.num_qo_heads % result.num_kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("q=", result.num_qo_heads, " is no multiple of kv=", result.num_kv_heads));
  }
  return result;
}

std::vector<AttentionCase> DefaultAttentionCases() {
  std::vector<AttentionCase> cases;
  for (const auto& [batch, thousands] :
       {std::pair{1, 4}, {1, 32}, {1, 128}, {8, 4}, {8, 32}, {32, 8}, {32, 32}, {128, 4}}) {
    cases.push_back({.batch = batch, .context_tokens = thousands * kThousand});
  }
  return cases;
}

std::vector<AttentionCase> ExtraAttentionCases() {
  constexpr int kLong = 32 * kThousand, kShort = 4 * kThousand;
  return {{.batch = 8, .context_tokens = kLong, .num_qo_heads = 64},
          {.batch = 128, .context_tokens = kShort, .num_qo_heads = 64},
          {.batch = 8, .context_tokens = kLong, .head_dim = 64},
          {.batch = 128, .context_tokens = kShort, .head_dim = 64},
          {.batch = 8, .context_tokens = kLong, .mixed = true},
          {.batch = 128, .context_tokens = kShort, .mixed = true}};
}

std::vector<RequestLength> PlanLengths(const AttentionCase& attention_case, int window_tokens,
                                       uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::vector<RequestLength> lengths(attention_case.batch);
  for (RequestLength& length : lengths) {
    int tokens = attention_case.context_tokens;
    if (attention_case.mixed) tokens = 1 + static_cast<int>(engine() % (2 * uint64_t(tokens)));
    length.num_window_tokens = std::min(tokens, window_tokens);
    const int rest = tokens - length.num_window_tokens;
    length.num_blocks = (rest + kBlockTokens / 2) / kBlockTokens;
  }
  return lengths;
}

LaunchBytes CountLaunchBytes(const AttentionCase& attention_case, const CodecParams& params,
                             const std::vector<RequestLength>& lengths) {
  const PayloadLayout page = PayloadLayout::OfBlock(attention_case.kv_shape(), params.encoding);
  const int64_t token_bytes = TokenBytes(attention_case);
  LaunchBytes bytes;
  for (const RequestLength& length : lengths) {
    bytes.blocks += length.num_blocks * page.page_bytes;
    bytes.windows += length.num_window_tokens * token_bytes;
    if (length.num_blocks == 0) continue;
    bytes.sinks += params.num_sinks * token_bytes;
    if (!params.encoding.has_patterns) continue;
    bytes.banks += int64_t{params.num_patterns_k + params.num_patterns_v} * token_bytes / 2;
  }
  const int64_t query_bytes =
      kBytesPerFloat16 * attention_case.num_qo_heads * attention_case.head_dim;
  bytes.queries = attention_case.batch * (2 * query_bytes + token_bytes);
  return bytes;
}

double CountOperations(const AttentionCase& attention_case,
                       const std::vector<RequestLength>& lengths) {
  return 4.0 * attention_case.num_qo_heads * attention_case.head_dim *
         static_cast<double>(CountTokens(lengths));
}

int PlanCopies(int64_t launch_bytes, int64_t l2_bytes) {
  // With n copies, n - 1 whole launches lie between two uses at least.
  const int64_t between = std::max(kReuseBytes, 2 * l2_bytes + 1);
  return 1 + static_cast<int>((between + launch_bytes - 1) / launch_bytes);
}

}  // namespace pkv
