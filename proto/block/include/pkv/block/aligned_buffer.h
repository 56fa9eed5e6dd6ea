#ifndef PKV_BLOCK_ALIGNED_BUFFER_H_
#define PKV_BLOCK_ALIGNED_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

namespace pkv {

// Every frame starts at a multiple of this, in an object and in memory.
inline constexpr uint64_t kFrameAlignment = 128;

// Owns `size` bytes at an address that is a multiple of kFrameAlignment, zero at creation. Movable.
// Thread-compatible.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t size);
  // Not zero: for memory that is written before it is read.
  static AlignedBuffer ForOverwrite(size_t size);
  // The buffer moved from is empty.
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::move(other.data_)), size_(std::exchange(other.size_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    data_ = std::move(other.data_);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  size_t size() const { return size_; }
  std::span<std::byte> span() { return {data_.get(), size_}; }
  std::span<const std::byte> span() const { return {data_.get(), size_}; }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte[], Free> data_;
  size_t size_ = 0;
};

}  // namespace pkv

#endif  // PKV_BLOCK_ALIGNED_BUFFER_H_
