// Goal: DecodeDataFrame accepts exactly the DataFrames that protobuf accepts and whose pieces add
// up, in the message or staged, whatever the slices, and reads the same content.
// Method: the first byte chooses the size of the slices, the rest is the message.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "proto/transport/data_frame.h"

namespace {

// Fields below which a message is never refused for its number of fields: they have two bytes each.
constexpr size_t kFewBytes = 16 << 10;

void Require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const size_t slice_bytes = 1 + data[0] % 64;
  const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  std::vector<grpc::Slice> slices;
  for (size_t begin = 0; begin < bytes.size(); begin += slice_bytes) {
    slices.emplace_back(bytes.substr(begin, slice_bytes));
  }
  grpc::ByteBuffer message(slices.data(), slices.size());
  auto frame = pkv::DecodeDataFrame(message);

  pkv::v1::DataFrame expected;
  const bool parses = expected.ParseFromString(bytes);
  uint64_t piece_bytes = 0;
  for (const auto& piece : expected.control().pieces()) piece_bytes += piece.length();
  const pkv::v1::FrameControl& control = expected.control();
  const bool adds_up = control.has_staged()
                           ? piece_bytes == control.staged().bytes() &&
                                 piece_bytes <= pkv::kMaxStagedBytes && expected.payload().empty()
                           : piece_bytes == expected.payload().size();
  if (!frame.ok()) {
    Require(!parses || !adds_up || bytes.size() > kFewBytes);
    return 0;
  }
  Require(parses && adds_up);
  Require(frame->payload.remaining() == expected.payload().size());
  std::string payload(frame->payload.remaining(), '\0');
  Require(frame->payload.Read(std::as_writable_bytes(std::span(payload))).ok());
  Require(payload == expected.payload());
  Require(frame->control.SerializeAsString() == expected.control().SerializeAsString());
  return 0;
}
