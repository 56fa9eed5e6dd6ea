#include "proto/transport/shm_frame.h"

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"

namespace pkv {
namespace {

constexpr size_t kLengthBytes = 4;

uint32_t ReadLength(const char* bytes) {
  uint32_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    length |= static_cast<uint32_t>(static_cast<unsigned char>(bytes[i])) << (8 * i);
  }
  return length;
}

}  // namespace

std::string EncodeShmMessage(const v1::ShmMessage& message) {
  const size_t length = message.ByteSizeLong();
  PKV_CHECK(length <= kMaxShmMessageBytes, length, " bytes");
  std::string bytes;
  bytes.reserve(kLengthBytes + length);
  for (size_t i = 0; i < kLengthBytes; ++i) {
    bytes.push_back(static_cast<char>(length >> (8 * i) & 0xff));
  }
  PKV_CHECK(message.AppendToString(&bytes));
  return bytes;
}

void ShmFrameReader::Add(std::span<const std::byte> bytes) {
  bytes_.erase(0, taken_);
  taken_ = 0;
  bytes_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

absl::StatusOr<std::optional<v1::ShmMessage>> ShmFrameReader::Next() {
  const size_t left = bytes_.size() - taken_;
  if (left < kLengthBytes) return std::nullopt;
  const uint32_t length = ReadLength(bytes_.data() + taken_);
  if (length > kMaxShmMessageBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("message of ", length, " bytes, limit ", kMaxShmMessageBytes));
  }
  if (left - kLengthBytes < length) return std::nullopt;
  v1::ShmMessage message;
  if (!message.ParseFromArray(bytes_.data() + taken_ + kLengthBytes, static_cast<int>(length))) {
    return absl::InvalidArgumentError(absl::StrCat(length, " bytes that are no ShmMessage"));
  }
  if (message.kind_case() == v1::ShmMessage::KIND_NOT_SET) {
    return absl::InvalidArgumentError("message of no known kind");
  }
  taken_ += kLengthBytes + length;
  return message;
}

}  // namespace pkv
