#ifndef PKV_KERNELS_DEVICE_WGMMA_CUH_
#define PKV_KERNELS_DEVICE_WGMMA_CUH_

// Products of a warpgroup (128 threads) on tensor cores, and tiles that the copy engine lays out
// for them (PTX ISA 8, sm_90a: "Asynchronous Warpgroup Level Matrix Instructions").
//
// A tile here is panels of 64 columns of fp16; a panel is rows of 128 bytes, aligned to 1024, in
// which the 16-byte piece c of row r stands at place c ^ (r % 8): the 128-byte swizzle.

#include <cuda.h>

#include <cstdint>

namespace pkv::ptx {

inline constexpr int kPanelColumns = 64;
inline constexpr int kPanelRowBytes = 128;

// Byte of a panel where the 16-byte piece `piece` (0..7) of row `row` stands.
__device__ __forceinline__ uint32_t PanelOffset(int row, int piece) {
  return row * kPanelRowBytes + ((piece ^ (row & 7)) << 4);
}

// Describes an operand in shared memory. Groups of 8 rows are 1024 bytes apart. `panel_bytes`: from
// one panel to the next, for an operand whose rows are summed over (V); else 0.
__device__ __forceinline__ uint64_t PanelOperand(uint32_t address, uint32_t panel_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kGroupBytes = 8 * kPanelRowBytes;
  return kSwizzle128 | (kGroupBytes >> 4) << 32 | uint64_t{panel_bytes >> 4} << 16 |
         (address & 0x3ffff) >> 4;
}

// Orders registers that were written before with the products that follow.
__device__ __forceinline__ void FenceProducts() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most kPending of the committed groups are in flight.
template <int kPending>
__device__ __forceinline__ void WaitProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving what reads or writes these registers past this point.
template <int kSize>
__device__ __forceinline__ void Pin(float (&d)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define PKV_FLOATS_8(d, i)                                                                      \
  "+f"((d)[i]), "+f"((d)[(i) + 1]), "+f"((d)[(i) + 2]), "+f"((d)[(i) + 3]), "+f"((d)[(i) + 4]), \
      "+f"((d)[(i) + 5]), "+f"((d)[(i) + 6]), "+f"((d)[(i) + 7])
#define PKV_FLOATS_32(d, i) \
  PKV_FLOATS_8(d, i), PKV_FLOATS_8(d, (i) + 8), PKV_FLOATS_8(d, (i) + 16), PKV_FLOATS_8(d, (i) + 24)

// Sums of a product, [64 rows][n columns] fp32: warp w of the warpgroup, lane 4 g + q, holds in
// d[4 j + 2 h + i] row 16 w + g + 8 h, column 8 j + 2 q + i.

// d = a b^T, or d += with `adds`: a 64 rows of 16 columns, b 128 rows of 16 columns.
__device__ __forceinline__ void ProductOfRows128(float (&d)[64], uint64_t a, uint64_t b, int adds) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22, "
      "%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42, "
      "%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62, "
      "%63}, "
      "%64, %65, p, 1, 1, 0, 0;\n"
      "}\n"
      : PKV_FLOATS_32(d, 0), PKV_FLOATS_32(d, 32)
      : "l"(a), "l"(b), "r"(adds));
}

// The same with a as Mma() takes it, warp w rows 16 w .., and b 64 rows.
__device__ __forceinline__ void ProductOfRows64(float (&d)[32], const uint4& a, uint64_t b,
                                                int adds) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22, "
      "%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
      "{%32,%33,%34,%35}, %36, p, 1, 1, 0;\n"
      "}\n"
      : PKV_FLOATS_32(d, 0)
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"(adds));
}

// d += a b: a 64 rows of 16 columns as Mma() takes them, warp w rows 16 w ..; b 16 rows of 128 or
// 64 columns.
__device__ __forceinline__ void AddProduct(float (&d)[64], const uint32_t* a, uint64_t b) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22, "
      "%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42, "
      "%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62, "
      "%63}, "
      "{%64,%65,%66,%67}, %68, p, 1, 1, 1;\n"
      "}\n"
      : PKV_FLOATS_32(d, 0), PKV_FLOATS_32(d, 32)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ __forceinline__ void AddProduct(float (&d)[32], const uint32_t* a, uint64_t b) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22, "
      "%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
      "{%32,%33,%34,%35}, %36, p, 1, 1, 1;\n"
      "}\n"
      : PKV_FLOATS_32(d, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// d += a^T b: a 16 rows of 64 columns, b 16 rows of 128 or 64 columns, fp16 or bf16. Panels of both
// hold those rows one after another; b as V.
template <bool kIsBfloat16>
__device__ __forceinline__ void AddProductOfColumns(float (&d)[64], uint64_t a, uint64_t b) {
#define PKV_PRODUCT(type)                                                                    \
  asm volatile(                                                                              \
      "{\n"                                                                                  \
      ".reg .pred p;\n"                                                                      \
      "setp.ne.b32 p, 1, 0;\n"                                                               \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                           \
      " "                                                                                    \
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22, " \
      "%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42, "    \
      "%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62, "    \
      "%63}, "                                                                               \
      "%64, %65, p, 1, 1, 1, 1;\n"                                                           \
      "}\n"                                                                                  \
      : PKV_FLOATS_32(d, 0), PKV_FLOATS_32(d, 32)                                            \
      : "l"(a), "l"(b))
  if constexpr (kIsBfloat16) {
    PKV_PRODUCT("bf16");
  } else {
    PKV_PRODUCT("f16");
  }
#undef PKV_PRODUCT
}
template <bool kIsBfloat16>
__device__ __forceinline__ void AddProductOfColumns(float (&d)[32], uint64_t a, uint64_t b) {
#define PKV_PRODUCT(type)                                                                    \
  asm volatile(                                                                              \
      "{\n"                                                                                  \
      ".reg .pred p;\n"                                                                      \
      "setp.ne.b32 p, 1, 0;\n"                                                               \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                            \
      " "                                                                                    \
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22, " \
      "%23,%24,%25,%26,%27,%28,%29,%30,%31}, "                                               \
      "%32, %33, p, 1, 1, 1, 1;\n"                                                           \
      "}\n"                                                                                  \
      : PKV_FLOATS_32(d, 0)                                                                  \
      : "l"(a), "l"(b))
  if constexpr (kIsBfloat16) {
    PKV_PRODUCT("bf16");
  } else {
    PKV_PRODUCT("f16");
  }
#undef PKV_PRODUCT
}

#undef PKV_FLOATS_32
#undef PKV_FLOATS_8

// Copies the box at (column, row, matrix) of `map` to shared memory; zeros stand for what is
// outside.
__device__ __forceinline__ void CopyBox(uint32_t to, const CUtensorMap* map, int column, int row,
                                        int matrix, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0],[%1,{%2,%3,%4}],[%5];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(matrix), "r"(barrier)
      : "memory");
}

// Moves registers between the warpgroups of a CTA; every warp of the warpgroup calls it.
template <int kRegisters>
__device__ __forceinline__ void ShrinkRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void GrowRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Barriers of the CTA by number: waits for, or counts as, part of `threads` threads.
__device__ __forceinline__ void SyncNamed(int id, int threads) {
  asm volatile("bar.sync %0,%1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void ArriveNamed(int id, int threads) {
  asm volatile("bar.arrive %0,%1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace pkv::ptx

#endif  // PKV_KERNELS_DEVICE_WGMMA_CUH_
