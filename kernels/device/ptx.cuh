#ifndef PKV_KERNELS_DEVICE_PTX_CUH_
#define PKV_KERNELS_DEVICE_PTX_CUH_

// The PTX instructions that C++ has no name for, one function each (PTX ISA 8, sm_90).

#include <cstdint>

namespace pkv::ptx {

// d += a b, m16n8k16, fp16 operands, fp32 sums. Lane = 4 g + q holds of a rows g and g + 8, of b
// column g, of d columns 2 q and 2 q + 1.
__device__ __forceinline__ void Mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                    uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same of bf16.
__device__ __forceinline__ void MmaBfloat16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                            uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// d += a b, m16n8k32, unsigned bytes times signed bytes, 32-bit sums. Lane = 4 g + q holds of a
// bytes 4 q .. 4 q + 3 of rows g and g + 8 (a0, a1) and of the same rows 16 columns on (a2, a3), of
// b the same rows of column g, of d columns 2 q and 2 q + 1.
__device__ __forceinline__ void MmaBytes(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                         uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same of signed bytes.
__device__ __forceinline__ void MmaSignedBytes(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                               uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Transposes the 8 x 8 matrix of fp16 whose row g, columns 2 q and 2 q + 1 this lane holds.
__device__ __forceinline__ uint32_t Transpose(uint32_t a) {
  uint32_t d;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0,%1;" : "=r"(d) : "r"(a));
  return d;
}

// Four 8 x 8 matrices of fp16; lane 8 m + r gives the address of row r of matrix m.
__device__ __forceinline__ uint4 LoadMatrices(uint32_t address) {
  uint4 r;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
               : "r"(address));
  return r;
}
__device__ __forceinline__ uint4 LoadMatricesTransposed(uint32_t address) {
  uint4 r;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
               : "r"(address));
  return r;
}

// Two floats to fp16x2, rounded to nearest even: low half, high half.
__device__ __forceinline__ uint32_t PackHalf2(float low, float high) {
  uint32_t d;
  asm("cvt.rn.f16x2.f32 %0,%2,%1;" : "=r"(d) : "f"(low), "f"(high));
  return d;
}
__device__ __forceinline__ uint32_t MultiplyHalf2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("mul.rn.f16x2 %0,%1,%2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
// a b + c, rounded once.
__device__ __forceinline__ uint32_t FmaHalf2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0,%1,%2,%3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
__device__ __forceinline__ uint32_t AddHalf2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("add.rn.f16x2 %0,%1,%2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
__device__ __forceinline__ uint32_t AbsHalf2(uint32_t a) {
  uint32_t d;
  asm("abs.f16x2 %0,%1;" : "=r"(d) : "r"(a));
  return d;
}
__device__ __forceinline__ uint32_t MinHalf2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("min.f16x2 %0,%1,%2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
__device__ __forceinline__ uint32_t MaxHalf2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("max.f16x2 %0,%1,%2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
// 1.0 where equal, 0 elsewhere.
__device__ __forceinline__ uint32_t EqualHalf2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("set.eq.f16x2.f16x2 %0,%1,%2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

// Adds to a counter in global memory and returns what it was. What this thread has written or seen
// before, those see that add later; it sees what those had that added before.
__device__ __forceinline__ uint32_t AddAcquireRelease(uint32_t* counter, uint32_t value) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0,[%1],%2;"
               : "=r"(before)
               : "l"(counter), "r"(value)
               : "memory");
  return before;
}

// 2^x; 0 for results below the normal range.
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}

// Programmatic dependent launch: the grid that follows may begin, up to its own wait; the grid
// before is done and its writes are seen. Nothing without that kind of launch.
__device__ __forceinline__ void LetNextGridStart() {
  asm volatile("griddepcontrol.launch_dependents;");
}
__device__ __forceinline__ void WaitForPreviousGrid() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Barriers in shared memory on which bulk copies report their bytes.
__device__ __forceinline__ void InitBarrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0],%1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// What other threads and the copy engine see of InitBarrier() from here on.
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// Orders shared memory that threads have read and written before later bulk copies.
__device__ __forceinline__ void FenceSharedForCopies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// Has the barrier's phase wait for `bytes` more; arrives `count` times; both, arriving once.
__device__ __forceinline__ void ExpectBytes(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0],%1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void Arrive(uint32_t barrier, uint32_t count = 1) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _,[%0],%1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void ArriveExpecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _,[%0],%1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Copies 16 bytes from global to shared memory, or writes 16 zeros: `bytes` is 16 or 0.
__device__ __forceinline__ void CopyAsync16(uint32_t to, const void* from, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
// Groups this thread's CopyAsync16() so far; waits until at most kPending of its groups are open.
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
// Arrives once, when this thread's CopyAsync16() so far are done.
__device__ __forceinline__ void ArriveAfterCopies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
// Lanes of a warp may learn of the end of a phase one after another.
__device__ __forceinline__ void WaitBarrier(uint32_t barrier, uint32_t phase) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "WAIT:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done,[%0],%1;\n"
      "@!done bra WAIT;\n"
      "}\n" ::"r"(barrier),
      "r"(phase)
      : "memory");
}
// Copies `bytes` (a multiple of 16, as are both addresses) from global to shared memory. The L2
// cache is told that nobody reads them again.
__device__ __forceinline__ void CopyBulk(uint32_t to, const void* from, uint32_t bytes,
                                         uint32_t barrier) {
  constexpr uint64_t kEvictFirst = 0x12f0000000000000;  // as createpolicy encodes it
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0],[%1],%2,[%3],%4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(kEvictFirst)
      : "memory");
}

// The same of what others read too: L2 keeps it.
__device__ __forceinline__ void CopyBulkKept(uint32_t to, const void* from, uint32_t bytes,
                                             uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0],[%1],%2,[%3];" ::"r"(
          to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ uint4 LoadShared128(uint32_t address) {
  uint4 r;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3},[%4];"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
               : "r"(address));
  return r;
}
__device__ __forceinline__ uint2 LoadShared64(uint32_t address) {
  uint2 r;
  asm volatile("ld.shared.v2.u32 {%0,%1},[%2];" : "=r"(r.x), "=r"(r.y) : "r"(address));
  return r;
}
__device__ __forceinline__ uint32_t LoadShared32(uint32_t address) {
  uint32_t r;
  asm volatile("ld.shared.u32 %0,[%1];" : "=r"(r) : "r"(address));
  return r;
}
__device__ __forceinline__ void StoreShared32(uint32_t address, uint32_t value) {
  asm volatile("st.shared.u32 [%0],%1;" ::"r"(address), "r"(value) : "memory");
}
__device__ __forceinline__ void StoreShared128(uint32_t address, uint4 value) {
  asm volatile("st.shared.v4.u32 [%0],{%1,%2,%3,%4};" ::"r"(address), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
}
__device__ __forceinline__ float LoadSharedFloat(uint32_t address) {
  float r;
  asm volatile("ld.shared.f32 %0,[%1];" : "=f"(r) : "r"(address));
  return r;
}
__device__ __forceinline__ void StoreSharedFloat(uint32_t address, float value) {
  asm volatile("st.shared.f32 [%0],%1;" ::"r"(address), "f"(value) : "memory");
}

}  // namespace pkv::ptx

#endif  // PKV_KERNELS_DEVICE_PTX_CUH_
