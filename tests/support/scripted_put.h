#ifndef PKV_TESTS_SUPPORT_SCRIPTED_PUT_H_
#define PKV_TESTS_SUPPORT_SCRIPTED_PUT_H_

// A server of puts for ScriptedConnection: keeps what is committed, decides as told.

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/scripted_connection.h"

namespace pkv {

// Thread-compatible. Must outlive the streams of its scripts.
class ScriptedPutServer {
 public:
  // Decision on each object of a begin; wanted when not set.
  std::function<v1::PutDecision(const v1::ObjectDescriptor&)> decide;
  // Receipt of a commit; stored when not set.
  std::function<v1::PutReceipt(const v1::PutCommit&)> receive;
  // Committed objects by their id: head and frames.
  std::map<std::string, std::string> stored;
  std::vector<std::string> commit_order;
  size_t max_payload_bytes = 0;  // of one message
  // Where payload stands of puts that name `stage_token`; empty: they are told to send it.
  std::span<const std::byte> stage;
  std::string stage_token;
  bool says_taken = true;  // once it has read there
  int num_staged = 0;      // messages whose payload stood there

  ScriptedStream::Script Script() {
    return [this, put = Put()](ScriptedStream& stream, const std::string* message) mutable {
      if (message == nullptr) return stream.End(absl::OkStatus());
      v1::DataFrame frame;
      PKV_CHECK(frame.ParseFromString(*message));
      max_payload_bytes = std::max(max_payload_bytes, frame.payload().size());
      if (frame.control().has_put_begin()) Begin(frame.control().put_begin(), put, stream);
      if (frame.control().has_staged()) FindStaged(frame);
      Pieces(frame, put);
      if (frame.control().has_staged() && says_taken) {
        v1::PutReply reply;
        reply.mutable_taken();
        stream.Deliver(reply);
      }
      if (frame.control().has_put_commit()) Commit(frame.control().put_commit(), put, stream);
    };
  }

 private:
  // One put in progress.
  struct Put {
    v1::PutBegin begin;
    std::map<uint32_t, std::string> frames;  // of each object, all layers
  };

  void Begin(const v1::PutBegin& begin, Put& put, ScriptedStream& stream) {
    put.begin = begin;
    v1::PutReply reply;
    for (const v1::ObjectDescriptor& object : begin.objects()) {
      const v1::PutDecision decision = decide ? decide(object) : v1::PUT_DECISION_WANTED;
      if (decision == v1::PUT_DECISION_REFUSED) {
        v1::ObjectStatus* refusal = reply.mutable_accepted()->add_refusals();
        refusal->set_object_index(static_cast<uint32_t>(reply.accepted().decisions_size()));
        refusal->set_code(grpc::StatusCode::RESOURCE_EXHAUSTED);
        refusal->set_message("arena full");
      }
      reply.mutable_accepted()->add_decisions(decision);
    }
    reply.mutable_accepted()->set_staged(!stage.empty() && begin.stage() == stage_token);
    stream.Deliver(reply);
  }

  void FindStaged(v1::DataFrame& frame) {
    const v1::StagedPayload& staged = frame.control().staged();
    PKV_CHECK(frame.payload().empty() && staged.offset() + staged.bytes() <= stage.size());
    const std::span<const std::byte> bytes = stage.subspan(staged.offset(), staged.bytes());
    frame.mutable_payload()->assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    ++num_staged;
  }

  static void Pieces(const v1::DataFrame& frame, Put& put) {
    size_t at = 0;
    for (const v1::Piece& piece : frame.control().pieces()) {
      const v1::ObjectDescriptor& object =
          put.begin.objects(static_cast<int>(piece.object_index()));
      std::string& frames = put.frames[piece.object_index()];
      frames.resize(object.frame_bytes() * object.num_layers());
      frames.replace(piece.layer() * object.frame_bytes() + piece.offset(), piece.length(),
                     frame.payload(), at, piece.length());
      at += piece.length();
    }
    PKV_CHECK(at == frame.payload().size());
  }

  void Commit(const v1::PutCommit& commit, Put& put, ScriptedStream& stream) {
    const std::string& id = put.begin.objects(static_cast<int>(commit.object_index())).key().id();
    v1::PutReply reply;
    if (receive) {
      *reply.mutable_receipt() = receive(commit);
    } else {
      reply.mutable_receipt()->set_result(v1::PUT_RESULT_STORED);
    }
    reply.mutable_receipt()->set_object_index(commit.object_index());
    if (reply.receipt().result() == v1::PUT_RESULT_STORED) {
      stored[id] = commit.head() + put.frames[commit.object_index()];
      commit_order.push_back(id);
    }
    stream.Deliver(reply);
  }
};

inline std::string IdOf(const SealedObject& object) {
  return std::string(object.header.id.AsBytes());
}

inline std::string BytesOf(const SealedObject& object) {
  return std::string(reinterpret_cast<const char*>(object.bytes().data()), object.bytes().size());
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_SCRIPTED_PUT_H_
