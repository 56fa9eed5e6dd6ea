// Goal: ShmFrameReader yields the same messages, or the same refusal, however the stream is cut,
// and each message it yields is one that protobuf reads from those bytes. Method: the first byte
// chooses the size of the pieces, the rest is the stream.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "proto/transport/shm_frame.h"

namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

struct Outcome {
  std::vector<std::string> messages;
  bool refused = false;
  bool operator==(const Outcome&) const = default;
};

Outcome ReadAll(const std::string& stream, size_t piece_bytes) {
  Outcome outcome;
  pkv::ShmFrameReader reader;
  for (size_t at = 0; at < stream.size() && !outcome.refused; at += piece_bytes) {
    const std::string piece = stream.substr(at, piece_bytes);
    reader.Add(std::as_bytes(std::span(piece)));
    for (;;) {
      const auto message = reader.Next();
      outcome.refused = !message.ok();
      if (!message.ok() || !message->has_value()) break;
      outcome.messages.push_back((*message)->SerializeAsString());
    }
  }
  return outcome;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string stream(reinterpret_cast<const char*>(data) + 1, size - 1);
  const Outcome whole = ReadAll(stream, std::max<size_t>(1, stream.size()));
  Require(ReadAll(stream, 1 + data[0] % 64) == whole);
  for (const std::string& bytes : whole.messages) {
    pkv::v1::ShmMessage message;
    Require(message.ParseFromString(bytes));
    Require(message.kind_case() != pkv::v1::ShmMessage::KIND_NOT_SET);
    // What it says can be said again.
    Outcome again = ReadAll(pkv::EncodeShmMessage(message), 1);
    Require(!again.refused && again.messages.size() == 1);
  }
  return 0;
}
