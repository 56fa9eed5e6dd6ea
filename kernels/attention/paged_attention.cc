#include "pkv/kernels/paged_attention.h"

#include "absl/strings/str_cat.h"
#include "kernels/attention/attention_backends.h"
#include "proto/base/status_macros.h"
#include "proto/block/payload_layout.h"

namespace pkv {
namespace {

absl::Status CheckEqual(absl::string_view what, int64_t value, int64_t expected) {
  if (value == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, " ", value, " is not ", expected));
}

absl::Status CheckBank(const BlockPage& page, size_t index) {
  if (!page.header->encoding().has_patterns) return absl::OkStatus();
  if (page.codebook == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("page ", index, " has patterns, no codebook"));
  }
  const Codebook& bank = *page.codebook;
  const int needs_k =
      page.header->num_patterns_k + ((page.header->flags & kFlagAppendsK) != 0 ? 1 : 0);
  const int needs_v =
      page.header->num_patterns_v + ((page.header->flags & kFlagAppendsV) != 0 ? 1 : 0);
  if (bank.num_kv_heads() == page.header->num_kv_heads &&
      bank.head_dim() == page.header->head_dim && bank.num_k() >= needs_k &&
      bank.num_v() >= needs_v) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "page ", index, " refers to ", needs_k, " K and ", needs_v, " V patterns of ",
      page.header->num_kv_heads, " x ", page.header->head_dim, "; its codebook has ", bank.num_k(),
      " and ", bank.num_v(), " of ", bank.num_kv_heads(), " x ", bank.head_dim()));
}

absl::Status CheckPage(const AttentionArgs& args, size_t index) {
  const BlockPage& page = args.pages[index];
  const std::string name = absl::StrCat("page ", index);
  if (page.header == nullptr) return absl::InvalidArgumentError(absl::StrCat(name, " no header"));
  const ObjectHeader& header = *page.header;
  PKV_RETURN_IF_ERROR(CheckEqual(absl::StrCat(name, " kind"), static_cast<int>(header.kind),
                                 static_cast<int>(ObjectKind::kBlock)));
  PKV_RETURN_IF_ERROR(
      CheckEqual(absl::StrCat(name, " kv heads"), header.num_kv_heads, args.window.num_kv_heads));
  PKV_RETURN_IF_ERROR(
      CheckEqual(absl::StrCat(name, " head_dim"), header.head_dim, args.window.head_dim));
  PKV_RETURN_IF_ERROR(ValidateEncoding(header.shape(), header.encoding()));
  if (header.num_sinks > kMaxSinks) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " num_sinks ", header.num_sinks, " exceeds ", kMaxSinks));
  }
  PKV_RETURN_IF_ERROR(CheckEqual(absl::StrCat(name, " frame bytes"),
                                 static_cast<int64_t>(page.frame.size()),
                                 PayloadLayout::Of(header).frame_bytes));
  PKV_RETURN_IF_ERROR(CheckEqual(
      absl::StrCat(name, " frame address modulo 4"),
      static_cast<int64_t>(reinterpret_cast<uintptr_t>(page.frame.data()) % sizeof(uint32_t)), 0));
  return CheckBank(page, index);
}

absl::Status CheckArguments(const AttentionArgs& args) {
  const KvTensorView& window = args.window;
  PKV_RETURN_IF_ERROR(ValidateShape({1, window.num_kv_heads, window.head_dim}));
  if (args.num_qo_heads <= 0 || args.num_qo_heads % window.num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("num_qo_heads ", args.num_qo_heads,
                                                   " is no positive multiple of kv heads ",
                                                   window.num_kv_heads));
  }
  if (args.num_queries < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_queries ", args.num_queries, " is below 1"));
  }
  if (window.num_tokens != 0 && window.num_tokens < args.num_queries) {
    return absl::InvalidArgumentError(absl::StrCat("window of ", window.num_tokens,
                                                   " tokens lacks those of its ", args.num_queries,
                                                   " queries"));
  }
  for (size_t i = 0; i < args.pages.size(); ++i) PKV_RETURN_IF_ERROR(CheckPage(args, i));
  return absl::OkStatus();
}

}  // namespace

absl::Status PagedAttention(const AttentionArgs& args, const ComputeContext& ctx) {
  if (ctx.device != Device::kCpu) {
    return absl::UnimplementedError("device CUDA: paged attention runs on the CPU only");
  }
  PKV_RETURN_IF_ERROR(CheckArguments(args));
  PagedAttentionCpu(args, ctx.pool, CodeArithmetic::kInteger);
  return absl::OkStatus();
}

}  // namespace pkv
