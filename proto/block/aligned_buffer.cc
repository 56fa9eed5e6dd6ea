#include "pkv/block/aligned_buffer.h"

#include <cstring>
#include <new>

namespace pkv {

AlignedBuffer::AlignedBuffer(size_t size) {
  *this = ForOverwrite(size);
  if (size > 0) std::memset(data_.get(), 0, size);
}

AlignedBuffer AlignedBuffer::ForOverwrite(size_t size) {
  AlignedBuffer buffer;
  buffer.size_ = size;
  if (size > 0) {
    buffer.data_.reset(
        static_cast<std::byte*>(::operator new (size, std::align_val_t{kFrameAlignment})));
  }
  return buffer;
}

void AlignedBuffer::Free::operator()(std::byte* data) const {
  ::operator delete (data, std::align_val_t{kFrameAlignment});
}

}  // namespace pkv
