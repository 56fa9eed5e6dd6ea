#include "kvstore/service/put_call.h"

#include <grpcpp/impl/codegen/proto_utils.h>

#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvstore/service/put_session.h"
#include "proto/base/status_macros.h"
#include "proto/base/sync.h"
#include "proto/transport/convert.h"

namespace pkv {
namespace {

// That wait to be read: one for the begin, one for each object, and one for each staged message
// that a client sends without waiting for its place to be free. Ours has two of those under way.
constexpr size_t kMaxReplies = 1 + kMaxObjectsPerCall + 1024;

// Reads and writes go on side by side: one of each at most.
class PutReactor : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  PutReactor(const ServiceParts& parts, grpc::CallbackServerContext* context)
      : parts_(parts),
        context_(context),
        call_(parts, RpcMethod::kPut),
        ticket_(parts.watchdog->Watch(MakeCancel(*context))) {
    const absl::Status status = Admit();
    if (status.ok()) {
      session_.emplace(parts_);
      StartRead(&received_);
    } else {
      EndReads(status);
    }
  }

  void OnReadDone(bool ok) override {
    ticket_->Progress();
    if (!ok) {
      // The client has sent all, or the stream broke.
      EndReads(context_->IsCancelled() ? CutOffStatus(*context_) : absl::OkStatus());
      return;
    }
    const absl::Status status = TakeMessage();
    received_.Clear();
    if (status.ok()) {
      StartRead(&received_);
    } else {
      EndReads(status);
    }
  }

  void OnWriteDone(bool ok) override {
    ticket_->Progress();
    {
      MutexLock lock(&mu_);
      replies_.pop_front();
      writing_ = false;
      if (!ok) replies_.clear();
    }
    Continue();
  }

  void OnDone() override {
    const bool cut_off = final_status_.ok() && context_->IsCancelled();
    call_.End(cut_off ? CutOffStatus(*context_).code() : final_status_.code());
    delete this;
  }

 private:
  absl::Status Admit() {
    PKV_RETURN_IF_ERROR(RequireDeadline(parts_, *context_));
    if (!parts_.draining->load()) return absl::OkStatus();
    parts_.metrics->Rejected(RejectReason::kDraining);
    return absl::UnavailableError("this server is draining: put elsewhere");
  }

  absl::Status TakeMessage() {
    PKV_ASSIGN_OR_RETURN(DecodedDataFrame frame, DecodeDataFrame(received_));
    PKV_ASSIGN_OR_RETURN(const std::vector<v1::PutReply> replies, session_->Take(frame));
    for (const v1::PutReply& reply : replies) {
      grpc::ByteBuffer buffer;
      bool owned = false;
      const grpc::Status serialized =
          grpc::SerializationTraits<v1::PutReply>::Serialize(reply, &buffer, &owned);
      if (!serialized.ok()) return FromGrpc(serialized);
      MutexLock lock(&mu_);
      if (replies_.size() >= kMaxReplies) {
        return absl::ResourceExhaustedError(
            absl::StrCat(kMaxReplies, " answers to a put wait to be read"));
      }
      replies_.push_back(std::move(buffer));
    }
    Continue();
    return absl::OkStatus();
  }

  // Gives back what was not committed, then ends the call once the answers are out.
  void EndReads(const absl::Status& status) {
    session_.reset();
    {
      MutexLock lock(&mu_);
      final_status_ = status;
      reads_done_ = true;
    }
    Continue();
  }

  // Starts the next write, or ends the call when there is nothing left to read and to write. Called
  // after every change; no lock is held while gRPC is called.
  void Continue() {
    const grpc::ByteBuffer* next = nullptr;
    {
      MutexLock lock(&mu_);
      if (writing_) return;
      if (!replies_.empty()) {
        writing_ = true;
        next = &replies_.front();
      } else if (!reads_done_ || std::exchange(finished_, true)) {
        return;
      }
    }
    if (next != nullptr) {
      StartWrite(next);
    } else {
      Finish(ToGrpc(final_status_));
    }
  }

  const ServiceParts parts_;
  grpc::CallbackServerContext* const context_;
  RpcCall call_;
  const std::unique_ptr<StallWatchdog::Ticket> ticket_;
  // Touched by the reads alone, one at a time.
  grpc::ByteBuffer received_;
  std::optional<PutSession> session_;

  Mutex mu_;
  std::deque<grpc::ByteBuffer> replies_ ABSL_GUARDED_BY(mu_);  // the front one may be under way
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool reads_done_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status final_status_;  // set once, before reads_done_
};

}  // namespace

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ServePut(
    const ServiceParts& parts, grpc::CallbackServerContext* context) {
  return new PutReactor(parts, context);
}

}  // namespace pkv
