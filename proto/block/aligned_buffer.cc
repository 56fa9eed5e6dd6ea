#include "pkv/block/aligned_buffer.h"

#include <cstring>
#include <new>

namespace pkv {

AlignedBuffer::AlignedBuffer(size_t size) : size_(size) {
  if (size == 0) return;
  data_.reset(static_cast<std::byte*>(::operator new (size, std::align_val_t{kFrameAlignment})));
  std::memset(data_.get(), 0, size);
}

void AlignedBuffer::Free::operator()(std::byte* data) const {
  ::operator delete (data, std::align_val_t{kFrameAlignment});
}

}  // namespace pkv
