#include "proto/transport/data_frame.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "pkv/block/aligned_buffer.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;

constexpr uint32_t kControlTag = WireFormatLite::MakeTag(v1::DataFrame::kControlFieldNumber,
                                                         WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
constexpr uint32_t kPayloadTag = WireFormatLite::MakeTag(v1::DataFrame::kPayloadFieldNumber,
                                                         WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
static_assert(kControlTag < 128 && kPayloadTag < 128, "a tag is one byte");

// A length prefix of a protobuf message has at most five bytes.
constexpr int kMaxLengthBytes = 5;

// An element of two bytes on the wire becomes an object of some 50 bytes in memory. An honest
// message has at most one piece for each 128 bytes of payload, two more where frames are split, or
// one entry for each object: twice that is never refused.
constexpr int kMaxFields = 2 * static_cast<int>(kMaxPayloadBytes / kFrameAlignment);
static_assert(kMaxFields >= 2 * kMaxObjectsPerCall);

// Where in a DataFrame a field stands.
enum class Level { kFrame, kControl, kKind };

bool HoldsMessage(Level level, int field_number) {
  switch (level) {
    case Level::kFrame:
      return field_number == v1::DataFrame::kControlFieldNumber;
    case Level::kControl:
      return field_number >= v1::FrameControl::kManifestFieldNumber &&
             field_number <= v1::FrameControl::kPutCommitFieldNumber;
    case Level::kKind:
      break;
  }
  return false;
}

// Adds to `count` the fields at and below `level`: pieces, and what a manifest, trailer or begin
// lists. False: not a protobuf message.
bool CountFields(CodedInputStream& input, Level level, int& count) {
  while (const uint32_t tag = input.ReadTag()) {
    ++count;
    if (WireFormatLite::GetTagWireType(tag) != WireFormatLite::WIRETYPE_LENGTH_DELIMITED ||
        !HoldsMessage(level, WireFormatLite::GetTagFieldNumber(tag))) {
      if (!WireFormatLite::SkipField(&input, tag)) return false;
      continue;
    }
    uint32_t length;
    if (!input.ReadVarint32(&length) || length > static_cast<uint32_t>(kMaxMessageBytes)) {
      return false;
    }
    const auto limit = input.PushLimit(static_cast<int>(length));
    const Level below = level == Level::kFrame ? Level::kControl : Level::kKind;
    if (!CountFields(input, below, count) || input.BytesUntilLimit() != 0) return false;
    input.PopLimit(limit);
  }
  return input.ConsumedEntireMessage();
}

// Walks the bytes of several slices.
class SliceCursor {
 public:
  explicit SliceCursor(const std::vector<grpc::Slice>& slices) : slices_(slices) {
    for (const grpc::Slice& slice : slices) remaining_ += slice.size();
  }

  uint64_t remaining() const { return remaining_; }

  // The next byte, or -1 at the end.
  int Next() {
    if (remaining_ == 0) return -1;
    SkipEmpty();
    --remaining_;
    return slices_[index_].begin()[offset_++];
  }

  // A length of at most kMaxLengthBytes bytes. False when it is longer or cut off.
  bool ReadLength(uint64_t& length) {
    length = 0;
    for (int i = 0; i < kMaxLengthBytes; ++i) {
      const int byte = Next();
      if (byte < 0) return false;
      length |= static_cast<uint64_t>(byte & 0x7f) << (7 * i);
      if (byte < 128) return true;
    }
    return false;
  }

  // The next `length` bytes in one piece: in place when one slice holds them, else gathered in
  // `storage`. REQUIRES: length <= remaining().
  std::span<const uint8_t> Contiguous(uint64_t length, std::string& storage) {
    if (length == 0) return {};
    SkipEmpty();
    remaining_ -= length;
    if (slices_[index_].size() - offset_ >= length) {
      const uint8_t* data = slices_[index_].begin() + offset_;
      offset_ += length;
      return {data, length};
    }
    storage.reserve(length);
    while (storage.size() < length) {
      SkipEmpty();
      const grpc::Slice& slice = slices_[index_];
      const size_t taken = std::min<size_t>(slice.size() - offset_, length - storage.size());
      storage.append(reinterpret_cast<const char*>(slice.begin()) + offset_, taken);
      offset_ += taken;
    }
    return {reinterpret_cast<const uint8_t*>(storage.data()), storage.size()};
  }

  // References everything that is left.
  std::vector<grpc::Slice> Rest() {
    std::vector<grpc::Slice> rest;
    for (; index_ < slices_.size(); ++index_, offset_ = 0) {
      const grpc::Slice& slice = slices_[index_];
      if (offset_ < slice.size()) rest.push_back(slice.sub(offset_, slice.size()));
    }
    remaining_ = 0;
    return rest;
  }

 private:
  // REQUIRES: a byte is left.
  void SkipEmpty() {
    while (offset_ == slices_[index_].size()) {
      ++index_;
      offset_ = 0;
    }
  }

  const std::vector<grpc::Slice>& slices_;
  size_t index_ = 0;
  size_t offset_ = 0;
  uint64_t remaining_ = 0;
};

absl::Status CheckNumFields(std::span<const uint8_t> bytes, Level level, const char* what) {
  CodedInputStream input(bytes.data(), static_cast<int>(bytes.size()));
  int count = 0;
  if (!CountFields(input, level, count)) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " of ", bytes.size(), " bytes is not a protobuf message"));
  }
  if (count > kMaxFields) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " has ", count, " fields, limit ", kMaxFields));
  }
  return absl::OkStatus();
}

// Reads the order this code writes: control, then payload up to the end. False: some other order,
// which may still be a DataFrame.
absl::StatusOr<bool> DecodeOwnOrder(const std::vector<grpc::Slice>& slices,
                                    DecodedDataFrame& frame) {
  SliceCursor cursor(slices);
  uint64_t control_bytes = 0;
  if (cursor.Next() != static_cast<int>(kControlTag) || !cursor.ReadLength(control_bytes) ||
      control_bytes > cursor.remaining()) {
    return false;
  }
  std::string storage;
  const std::span<const uint8_t> control = cursor.Contiguous(control_bytes, storage);
  if (cursor.remaining() > 0) {
    uint64_t payload_bytes = 0;
    if (cursor.Next() != static_cast<int>(kPayloadTag) || !cursor.ReadLength(payload_bytes) ||
        payload_bytes != cursor.remaining()) {
      return false;
    }
  }
  PKV_RETURN_IF_ERROR(CheckNumFields(control, Level::kControl, "frame control"));
  if (!frame.control.ParseFromArray(control.data(), static_cast<int>(control.size()))) {
    return absl::InvalidArgumentError(
        absl::StrCat("frame control of ", control.size(), " bytes does not parse"));
  }
  frame.payload = PayloadReader(cursor.Rest());
  return true;
}

// Reads any order of fields, at the price of a copy of the payload.
absl::Status DecodeAnyOrder(const std::vector<grpc::Slice>& slices, DecodedDataFrame& frame) {
  SliceCursor cursor(slices);
  std::string storage;
  const std::span<const uint8_t> bytes = cursor.Contiguous(cursor.remaining(), storage);
  PKV_RETURN_IF_ERROR(CheckNumFields(bytes, Level::kFrame, "data frame"));
  v1::DataFrame message;
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::InvalidArgumentError(
        absl::StrCat("data frame of ", bytes.size(), " bytes does not parse"));
  }
  frame.control = std::move(*message.mutable_control());
  std::vector<grpc::Slice> payload;
  if (!message.payload().empty()) payload.emplace_back(message.payload());
  frame.payload = PayloadReader(std::move(payload));
  return absl::OkStatus();
}

absl::Status CheckPieceLengths(const DecodedDataFrame& frame) {
  // At most kMaxFields pieces of 32-bit lengths: the sum cannot wrap.
  uint64_t piece_bytes = 0;
  for (const v1::Piece& piece : frame.control.pieces()) piece_bytes += piece.length();
  const bool is_staged = frame.control.has_staged();
  const uint64_t staged_bytes = frame.control.staged().bytes();
  if (is_staged && (staged_bytes > kMaxStagedBytes || frame.payload.remaining() > 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat(staged_bytes, " bytes staged, limit ", kMaxStagedBytes, ", and ",
                     frame.payload.remaining(), " in the message, limit 0"));
  }
  const uint64_t payload_bytes = is_staged ? staged_bytes : frame.payload.remaining();
  if (piece_bytes != payload_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(frame.control.pieces_size(), " pieces name ",
                                                   piece_bytes, " bytes, payload has ",
                                                   payload_bytes));
  }
  return absl::OkStatus();
}

}  // namespace

grpc::ByteBuffer EncodeDataFrame(const v1::FrameControl& control,
                                 std::span<const grpc::Slice> payload) {
  uint64_t payload_bytes = 0;
  for (const grpc::Slice& slice : payload) payload_bytes += slice.size();
  const size_t control_bytes = control.ByteSizeLong();

  grpc::Slice prefix(1 + CodedOutputStream::VarintSize64(control_bytes) + control_bytes +
                     (payload_bytes > 0 ? 1 + CodedOutputStream::VarintSize64(payload_bytes) : 0));
  // The slice is ours alone until it is handed on.
  uint8_t* out = const_cast<uint8_t*>(prefix.begin());
  *out++ = static_cast<uint8_t>(kControlTag);
  out = CodedOutputStream::WriteVarint64ToArray(control_bytes, out);
  out = control.SerializeWithCachedSizesToArray(out);
  if (payload_bytes > 0) {
    *out++ = static_cast<uint8_t>(kPayloadTag);
    CodedOutputStream::WriteVarint64ToArray(payload_bytes, out);
  }

  std::vector<grpc::Slice> slices;
  slices.reserve(1 + payload.size());
  slices.push_back(std::move(prefix));
  slices.insert(slices.end(), payload.begin(), payload.end());
  return grpc::ByteBuffer(slices.data(), slices.size());
}

PayloadReader::PayloadReader(std::vector<grpc::Slice> slices) : slices_(std::move(slices)) {
  for (const grpc::Slice& slice : slices_) remaining_ += slice.size();
}

absl::Status PayloadReader::Take(uint64_t bytes, std::byte* out) {
  if (bytes > remaining_) {
    return absl::DataLossError(
        absl::StrCat("payload ends early: wanted ", bytes, " bytes, ", remaining_, " remain"));
  }
  remaining_ -= bytes;
  while (bytes > 0) {
    const grpc::Slice& slice = slices_[slice_index_];
    const size_t taken = std::min<uint64_t>(slice.size() - offset_, bytes);
    if (out != nullptr) {
      std::memcpy(out, slice.begin() + offset_, taken);
      out += taken;
    }
    bytes -= taken;
    offset_ += taken;
    if (offset_ == slice.size()) {
      ++slice_index_;
      offset_ = 0;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<DecodedDataFrame> DecodeDataFrame(grpc::ByteBuffer& message) {
  if (!message.Valid()) return absl::InvalidArgumentError("no message: the buffer is not set");
  if (message.Length() > static_cast<size_t>(kMaxMessageBytes)) {
    return absl::InvalidArgumentError(
        absl::StrCat("message of ", message.Length(), " bytes, limit ", kMaxMessageBytes));
  }
  std::vector<grpc::Slice> slices;
  if (!message.Dump(&slices).ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("message of ", message.Length(), " bytes cannot be read"));
  }
  DecodedDataFrame frame;
  PKV_ASSIGN_OR_RETURN(const bool own_order, DecodeOwnOrder(slices, frame));
  if (!own_order) PKV_RETURN_IF_ERROR(DecodeAnyOrder(slices, frame));
  PKV_RETURN_IF_ERROR(CheckPieceLengths(frame));
  return frame;
}

}  // namespace pkv
