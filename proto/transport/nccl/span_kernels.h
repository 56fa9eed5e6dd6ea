#ifndef PKV_PROTO_TRANSPORT_NCCL_SPAN_KERNELS_H_
#define PKV_PROTO_TRANSPORT_NCCL_SPAN_KERNELS_H_

// Kernels over lists of spans. Items and digests lie in device memory, `stream` is a cudaStream_t;
// both return at once, the launch's error if it failed. Nothing is launched for no items. At most
// `max_ctas` CTAs take the items in turns; 0: as many as are of use.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "proto/transport/nccl/copy_item.h"
#include "proto/transport/nccl/frame_rules.h"
#include "proto/transport/nccl/span_digest.h"

namespace pkv {

// Loads the kernels. Otherwise the first launch does, and loading waits for the device: for ever
// when a kernel of NCCL runs there that waits for its peer.
cudaError_t LoadSpanKernels();

// A CTA of 256 threads an item at a time, 16 bytes a thread and load. Moves 2 bytes of traffic a
// byte.
cudaError_t LaunchCopyItems(const CopyItem* items, uint32_t num_items, int max_ctas, void* stream);

// DigestOnCpu on the device: digests[item.digest_index] ^= the item's part, and the bytes are
// copied to item.to where there is one.
//
// A CTA of four warps, an item a warp. A thread keeps four states, one for each word of its 16
// bytes, and with each row multiplies them by x^4096: eight look-ups in tables of nibbles, copied
// 32 times so that every thread reads its own bank (16 KiB of shared memory). Reads each byte once,
// and writes it at most once: on an H200 2,430 GB/s without copies and 1,837 with, which is 51 and
// 77 % of its memory's 4.8 TB/s.
cudaError_t LaunchDigestItems(const DigestItem* items, uint32_t num_items, uint32_t* digests,
                              int max_ctas, void* stream);

// CheckOnCpu on the device: flags[item.flag_index] becomes non-zero when a number of the item's
// frame breaks its rule.
//
// A CTA of 128 threads a frame at a time, 16 bytes a thread and load. Reads the numbers of a frame
// once: of pkv2's, with groups of 64, a fifth of its bytes.
cudaError_t LaunchCheckItems(const CheckItem* items, uint32_t num_items, const FrameRules* rules,
                             uint32_t* flags, int max_ctas, void* stream);

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_NCCL_SPAN_KERNELS_H_
