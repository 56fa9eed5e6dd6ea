#ifndef PKV_KVSTORE_SERVICE_PUT_SESSION_H_
#define PKV_KVSTORE_SERVICE_PUT_SESSION_H_

#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/service/rpc_call.h"
#include "kvstore/store/block_store.h"
#include "pkv/v1/cache_service.pb.h"
#include "proto/transport/data_frame.h"

namespace pkv {

// What one Block.Put does to the store, message by message. Memory is reserved before any payload
// is taken, and given back when the session ends before the commit.
//
// Thread-compatible.
class PutSession {
 public:
  // Everything in `parts` outlives the session.
  explicit PutSession(const ServiceParts& parts) : parts_(parts) {}
  ~PutSession();
  PutSession(const PutSession&) = delete;
  PutSession& operator=(const PutSession&) = delete;

  // Takes one message; its answers, in order. Payload that is staged has been copied when this
  // returns. An error ends the whole stream:
  //   InvalidArgument  the message breaks the protocol (no begin, unknown object, second commit,
  //                    too many objects, not inside the stage)
  //   ResourceExhausted  as ShmStage::Read
  // What is wrong with one object only is told in its receipt.
  absl::StatusOr<std::vector<v1::PutReply>> Take(DecodedDataFrame& frame);

 private:
  struct Object {
    ObjectKey key;
    v1::PutDecision decision = v1::PUT_DECISION_REFUSED;
    Reservation reservation;           // wanted
    Lease present;                     // stored before: kept while this session lasts
    std::optional<LogRecord> on_disk;  // or it is there
    absl::Status status;               // why it was refused or failed
    bool committed = false;            // a receipt was given
  };

  absl::StatusOr<v1::PutReply> Begin(const v1::PutBegin& begin);
  void Admit(const v1::ObjectDescriptor& descriptor, Object& object);
  class Payload;
  absl::Status TakePieces(DecodedDataFrame& frame);
  absl::Status TakePiece(const v1::Piece& piece, Payload& payload);
  absl::StatusOr<v1::PutReply> Commit(const v1::PutCommit& commit);
  v1::PutReply MakeReceipt(uint32_t object_index, v1::PutResult result, const absl::Status& status);
  absl::StatusOr<Object*> Find(uint32_t object_index);

  const ServiceParts parts_;
  // Null: payload comes in the messages. shared_ptr: the connection that it was lent over may end.
  std::shared_ptr<const ShmStage> stage_;
  bool begun_ = false;
  uint64_t payload_bytes_ = 0;  // received
  std::vector<Object> objects_;
};

}  // namespace pkv

#endif  // PKV_KVSTORE_SERVICE_PUT_SESSION_H_
