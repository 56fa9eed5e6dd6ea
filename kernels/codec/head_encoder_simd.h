#ifndef PKV_KERNELS_CODEC_HEAD_ENCODER_SIMD_H_
#define PKV_KERNELS_CODEC_HEAD_ENCODER_SIMD_H_

#include "kernels/codec/head_frame.h"
#include "kernels/codec/head_source.h"
#include "pkv/kernels/codec_params.h"
#include "pkv/kernels/key_feedback.h"

namespace pkv {

// Codes, scales and zero points of one kv head in the bytes of block_codec_cpu.cc's plain loops, on
// the instruction set of this machine (group_fit_simd.h). The frame's sections are zero before.
// feedback: null for none.
void EncodeKSimd(const HeadSource& k, const CodecParams& params, const KeyFeedback* feedback,
                 int kv_head, const HeadFrame<std::byte>& frame);
void EncodeVSimd(const HeadSource& v, const CodecParams& params, const HeadFrame<std::byte>& frame);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_HEAD_ENCODER_SIMD_H_
