#include "worker/decode/ticket.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "pkv/block/prefix_hash.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

absl::StatusOr<CodecParams> ParamsOf(const v1::Variant& ticket, const KvShape& shape) {
  absl::StatusOr<CodecParams> params = PresetByName(ticket.name(), shape);
  if (!params.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the ticket's variant is not served here: ", params.status().message()));
  }
  const Variant variant = params->variant();
  if (variant.params_digest != ticket.params_digest()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "variant '", variant.name, "' of the ticket has params digest ",
        absl::Hex(ticket.params_digest()), ", here it is ", absl::Hex(variant.params_digest)));
  }
  return params;
}

// Names the objects that hold all tokens but the last.
absl::Status NamePrefix(const v1::HandoffTicket& ticket, const Digest& profile,
                        BatchRequest& request) {
  const int num_cached = static_cast<int>(request.tokens.size()) - 1;
  if (ticket.num_blocks() > uint32_t(num_cached) / kBlockTokens ||
      ticket.num_blocks() * kBlockTokens + ticket.num_window_tokens() != uint32_t(num_cached)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the ticket names ", ticket.num_blocks(), " blocks and ", ticket.num_window_tokens(),
        " window tokens for ", num_cached, " cached tokens"));
  }
  const Variant variant = request.params.variant();
  request.num_blocks = static_cast<int>(ticket.num_blocks());
  request.num_window_tokens = static_cast<int>(ticket.num_window_tokens());
  request.num_tables = ticket.table_ids_size();
  for (const std::string& id : ticket.table_ids()) {
    PKV_ASSIGN_OR_RETURN(const Digest table, Digest::FromBytes(id));
    request.keys.push_back({ObjectKind::kTable, table, variant});
  }
  const size_t block_tokens = size_t(request.num_blocks) * kBlockTokens;
  const std::span<const int32_t> cached = std::span(request.tokens).first(num_cached);
  Digest parent;
  for (const Digest& id : PrefixIds(profile, cached.first(block_tokens))) {
    request.keys.push_back({ObjectKind::kBlock, id, variant});
    parent = id;
  }
  if (request.num_window_tokens > 0) {
    request.keys.push_back(
        {ObjectKind::kWindow, TailId(profile, parent, cached.subspan(block_tokens)), variant});
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<BatchRequest> ReadTicket(const v1::DecodeRequest& request, const ModelHost& host) {
  const v1::HandoffTicket& ticket = request.ticket();
  BatchRequest read;
  PKV_ASSIGN_OR_RETURN(const Digest profile, Digest::FromBytes(ticket.profile()));
  if (profile != host.profile()) {
    return absl::FailedPreconditionError(absl::StrCat("the ticket is of model ",
                                                      profile.ToShortHex(), ", this worker runs ",
                                                      host.profile().ToShortHex()));
  }
  PKV_ASSIGN_OR_RETURN(read.params, ParamsOf(ticket.variant(), host.config().kv_shape()));
  read.tokens.assign(ticket.token_ids().begin(), ticket.token_ids().end());
  PKV_RETURN_IF_ERROR(host.CheckTokens(read.tokens));
  PKV_RETURN_IF_ERROR(NamePrefix(ticket, profile, read));

  read.cache_server = ticket.cache_server();
  read.direct_server = ticket.direct_server();

  const v1::Sampling& sampling = request.sampling();
  if (sampling.max_tokens() < 1) return absl::InvalidArgumentError("max_tokens 0: at least 1");
  // The last token may stand just behind the context: it is never computed from.
  const int64_t room =
      host.config().max_position_embeddings - static_cast<int64_t>(read.tokens.size()) + 1;
  read.max_tokens = static_cast<int>(std::min<int64_t>(sampling.max_tokens(), room));
  read.sampling.temperature = sampling.temperature();
  read.sampling.top_p = sampling.top_p() == 0 ? 1 : sampling.top_p();
  read.sampling.seed = sampling.seed();
  PKV_RETURN_IF_ERROR(Sampler::Make(read.sampling).status());
  if (!sampling.ignore_eos()) read.end_tokens = host.config().eos_token_ids;
  read.put_back = request.put_back();
  read.refuse_recompute = request.refuse_recompute();
  return read;
}

}  // namespace pkv
