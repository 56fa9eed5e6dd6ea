#include "kvstore/service/block_service.h"

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvstore/service/get_call.h"
#include "kvstore/service/put_call.h"
#include "pkv/v1/cache_service.grpc.pb.h"
#include "pkv/v1/handoff.grpc.pb.h"
#include "proto/base/status_macros.h"
#include "proto/metrics/build_info.h"
#include "proto/transport/convert.h"
#include "proto/transport/data_frame.h"
#include "proto/transport/nccl/pair_call.h"

namespace pkv {
namespace {

constexpr int kMaxVariantsPerLookup = 16;
// Of the heads in one StatResponse.
constexpr uint64_t kMaxStatBytes = uint64_t{kMaxMessageBytes} - (uint64_t{1} << 20);

absl::Status CheckCount(const ServiceParts& parts, const char* what, int count, int limit) {
  if (count <= limit) return absl::OkStatus();
  parts.metrics->Rejected(RejectReason::kTooLarge);
  return absl::InvalidArgumentError(absl::StrCat(count, " ", what, ", limit ", limit));
}

absl::StatusOr<std::vector<ObjectKey>> ParseKeys(
    const ServiceParts& parts, const google::protobuf::RepeatedPtrField<v1::ObjectKey>& protos) {
  PKV_RETURN_IF_ERROR(CheckCount(parts, "objects", protos.size(), kMaxObjectsPerCall));
  std::vector<ObjectKey> keys;
  keys.reserve(protos.size());
  for (const v1::ObjectKey& proto : protos) {
    PKV_ASSIGN_OR_RETURN(ObjectKey key, FromProto(proto));
    keys.push_back(std::move(key));
  }
  return keys;
}

absl::Status Lookup(const ServiceParts& parts, const v1::LookupRequest& request,
                    v1::LookupResponse& response) {
  PKV_RETURN_IF_ERROR(
      CheckCount(parts, "prefix_ids", request.prefix_ids_size(), kMaxObjectsPerCall));
  PKV_RETURN_IF_ERROR(
      CheckCount(parts, "variants", request.variants_size(), kMaxVariantsPerLookup));
  std::vector<Digest> ids;
  ids.reserve(request.prefix_ids_size());
  for (const std::string& raw : request.prefix_ids()) {
    PKV_ASSIGN_OR_RETURN(const Digest id,
                         Digest::FromBytes(absl::string_view(raw.data(), raw.size())));
    ids.push_back(id);
  }
  std::vector<Variant> variants;
  for (const v1::Variant& proto : request.variants()) {
    PKV_ASSIGN_OR_RETURN(Variant variant, FromProto(proto));
    variants.push_back(std::move(variant));
  }
  const PrefixMatch match = parts.store->LongestPrefix(ids, variants);
  response.set_variant_index(static_cast<uint32_t>(match.variant_index));
  response.set_num_blocks(static_cast<uint32_t>(match.num_blocks));
  response.set_bytes(match.bytes);
  response.set_ssd_bytes(match.ssd_bytes);
  for (const Digest& id : match.table_ids) response.add_table_ids(id.bytes.data(), id.bytes.size());
  for (const int count : match.blocks_per_variant) {
    response.add_blocks_per_variant(static_cast<uint32_t>(count));
  }
  parts.metrics->LookedUp(ids.size() * kBlockTokens,
                          static_cast<uint64_t>(match.num_blocks) * kBlockTokens);
  return absl::OkStatus();
}

absl::Status Stat(const ServiceParts& parts, std::span<const ObjectKey> keys,
                  v1::StatResponse& response) {
  uint64_t heads_bytes = 0;
  for (const ObjectKey& key : keys) {
    v1::ObjectInfo* info = response.add_objects();
    const std::optional<StoredStat> stat = parts.store->Stat(key);
    if (!stat) continue;
    const std::span<const std::byte> head = stat->lease.head();
    heads_bytes += head.size();
    if (heads_bytes > kMaxStatBytes) {
      parts.metrics->Rejected(RejectReason::kTooLarge);
      return absl::InvalidArgumentError(absl::StrCat("the heads of ", keys.size(),
                                                     " objects have more than ", kMaxStatBytes,
                                                     " bytes: ask for fewer"));
    }
    info->set_present(true);
    info->set_object_bytes(stat->lease.bytes().size());
    info->set_idle_seconds(absl::ToDoubleSeconds(stat->idle));
    info->set_head(head.data(), head.size());
  }
  return absl::OkStatus();
}

absl::Status Delete(const ServiceParts& parts, const v1::DeleteRequest& request,
                    v1::DeleteResponse& response) {
  PKV_ASSIGN_OR_RETURN(const std::vector<ObjectKey> keys, ParseKeys(parts, request.objects()));
  uint32_t num_deleted = 0;
  // Tables last: one that only blocks of this request refer to goes with them.
  for (const bool tables : {false, true}) {
    for (const ObjectKey& key : keys) {
      if ((key.kind == ObjectKind::kTable) != tables) continue;
      if (parts.store->Delete(key) == DeleteResult::kDeleted) ++num_deleted;
    }
  }
  response.set_num_deleted(num_deleted);
  return absl::OkStatus();
}

// Answers at once, on the thread the call came in on: nothing here waits.
template <typename Handler>
grpc::ServerUnaryReactor* Serve(const ServiceParts& parts, RpcMethod method,
                                grpc::CallbackServerContext* context, const Handler& handler) {
  RpcCall call(parts, method);
  absl::Status status = RequireDeadline(parts, *context);
  if (status.ok()) status = handler();
  call.End(status.code());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

// Of what is on disk the heads are there as well: whoever asks for them is about to read the rest.
grpc::ServerUnaryReactor* ServeStat(const ServiceParts& parts, grpc::CallbackServerContext* context,
                                    const v1::StatRequest& request, v1::StatResponse* response) {
  RpcCall call(parts, RpcMethod::kStat);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  auto finish = [call, reactor](const absl::Status& status) mutable {
    call.End(status.code());
    reactor->Finish(ToGrpc(status));
  };
  absl::Status status = RequireDeadline(parts, *context);
  absl::StatusOr<std::vector<ObjectKey>> keys = ParseKeys(parts, request.objects());
  if (status.ok()) status = keys.status();
  if (!status.ok()) {
    finish(status);
  } else if (!parts.disk.IsNeeded(*keys)) {
    finish(Stat(parts, *keys, *response));
  } else {
    const absl::Duration patience = PageInPatience(parts, *context);
    parts.disk.pager->Fetch(*keys, patience,
                            [parts, keys = *keys, response, finish](const Pager::Result&) mutable {
                              finish(Stat(parts, keys, *response));
                            });
  }
  return reactor;
}

using BlockServiceBase = v1::Block::WithRawCallbackMethod_Get<v1::Block::WithRawCallbackMethod_Put<
    v1::Block::WithCallbackMethod_Lookup<v1::Block::WithCallbackMethod_Stat<
        v1::Block::WithCallbackMethod_Delete<v1::Block::Service>>>>>;

class BlockService : public BlockServiceBase {
 public:
  explicit BlockService(const ServiceParts& parts) : parts_(parts) {}

  grpc::ServerUnaryReactor* Lookup(grpc::CallbackServerContext* context,
                                   const v1::LookupRequest* request,
                                   v1::LookupResponse* response) override {
    return Serve(parts_, RpcMethod::kLookup, context,
                 [&] { return pkv::Lookup(parts_, *request, *response); });
  }
  grpc::ServerUnaryReactor* Stat(grpc::CallbackServerContext* context,
                                 const v1::StatRequest* request,
                                 v1::StatResponse* response) override {
    return ServeStat(parts_, context, *request, response);
  }
  grpc::ServerUnaryReactor* Delete(grpc::CallbackServerContext* context,
                                   const v1::DeleteRequest* request,
                                   v1::DeleteResponse* response) override {
    return Serve(parts_, RpcMethod::kDelete, context,
                 [&] { return pkv::Delete(parts_, *request, *response); });
  }
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Get(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* request) override {
    return ServeGet(parts_, context, *request);
  }
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Put(
      grpc::CallbackServerContext* context) override {
    return ServePut(parts_, context);
  }

 private:
  const ServiceParts parts_;
};

class AdminService : public v1::Admin::CallbackService {
 public:
  AdminService(const ServiceParts& parts, std::function<void()> drain)
      : parts_(parts), drain_(std::move(drain)) {}

  grpc::ServerUnaryReactor* Stats(grpc::CallbackServerContext* context, const v1::StatsRequest*,
                                  v1::StatsResponse* response) override {
    return Serve(parts_, RpcMethod::kAdminStats, context, [&] {
      const StoreStats stats = parts_.store->stats();
      response->set_capacity_bytes(stats.capacity_bytes);
      response->set_resident_bytes(stats.resident_bytes);
      response->set_pinned_bytes(stats.pinned_bytes);
      response->set_reserved_bytes(stats.reserved_bytes);
      response->set_num_objects(stats.num_objects);
      response->set_num_evictions(stats.num_evictions);
      if (parts_.log != nullptr) {
        const LogStats ssd = parts_.log->stats();
        response->set_ssd_capacity_bytes(ssd.capacity_bytes);
        response->set_ssd_resident_bytes(ssd.resident_bytes);
        response->set_ssd_objects(ssd.num_objects);
      }
      response->set_draining(parts_.draining->load());
      response->set_version(BuildVersion());
      return absl::OkStatus();
    });
  }
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const v1::DrainRequest*,
                                  v1::DrainResponse*) override {
    return Serve(parts_, RpcMethod::kAdminDrain, context, [&] {
      drain_();
      return absl::OkStatus();
    });
  }

 private:
  const ServiceParts parts_;
  const std::function<void()> drain_;
};

class HandoffService : public v1::Handoff::CallbackService {
 public:
  HandoffService(const ServiceParts& parts, OpenHandoff open, NcclServer* nccl)
      : parts_(parts), open_(std::move(open)), nccl_(nccl) {}

  grpc::ServerUnaryReactor* Open(grpc::CallbackServerContext* context,
                                 const v1::HandoffOpenRequest* request,
                                 v1::HandoffOpenResponse* response) override {
    return Serve(parts_, RpcMethod::kHandoffOpen, context, [&] {
      *response = open_(*request);
      return absl::OkStatus();
    });
  }
  grpc::ServerBidiReactor<v1::PairRequest, v1::PairReply>* Pair(
      grpc::CallbackServerContext* context) override {
    // shared_ptr: of the function, which is copied.
    const auto call = std::make_shared<RpcCall>(parts_, RpcMethod::kHandoffPair);
    return ServePair(nccl_, context, RequireDeadline(parts_, *context),
                     [call](absl::StatusCode code) { call->End(code); });
  }

 private:
  const ServiceParts parts_;
  const OpenHandoff open_;
  NcclServer* const nccl_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeBlockService(const ServiceParts& parts) {
  return std::make_unique<BlockService>(parts);
}

std::unique_ptr<grpc::Service> MakeAdminService(const ServiceParts& parts,
                                                std::function<void()> drain) {
  return std::make_unique<AdminService>(parts, std::move(drain));
}

std::unique_ptr<grpc::Service> MakeHandoffService(const ServiceParts& parts, OpenHandoff open,
                                                  NcclServer* nccl) {
  return std::make_unique<HandoffService>(parts, std::move(open), nccl);
}

}  // namespace pkv
