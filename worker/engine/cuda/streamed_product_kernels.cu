#include "worker/engine/cuda/streamed_product_kernels.h"

#include "kernels/device/ptx.cuh"
#include "worker/engine/cuda/weight_type.cuh"

namespace pkv {
namespace {

constexpr int kMathThreads = 32 * kProductWarps;
// A bulk copy takes the warp that asks for it some 75 cycles, and a stage, 16 copies, may take 860
// at the memory's speed.
constexpr int kFeedWarps = 4;
constexpr int kFeedThreads = 32 * kFeedWarps, kFeedRows = kTileRows / kFeedWarps;
constexpr int kProductThreads = kMathThreads + kFeedThreads;
// Named barriers; 0 is __syncthreads().
constexpr int kMathBarrier = 1, kFeedBarrier = 2;

template <int kBarrier, int kThreads>
__device__ __forceinline__ void SyncThreads() {
  asm volatile("bar.sync %0,%1;" ::"n"(kBarrier), "n"(kThreads) : "memory");
}

__device__ __forceinline__ void Multiply(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                         uint32_t a3, uint32_t b0, uint32_t b1, __half) {
  ptx::Mma(d, a0, a1, a2, a3, b0, b1);
}
__device__ __forceinline__ void Multiply(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                         uint32_t a3, uint32_t b0, uint32_t b1, __nv_bfloat16) {
  ptx::MmaBfloat16(d, a0, a1, a2, a3, b0, b1);
}

// A CTA's shared memory, by addresses:
//
//   | barriers: full[16], empty[16], x | tickets[2] | items[16] | ... 512
//   | sums [2][warp][token tile][lane] float4 | x [8 or 16 rows] | stages of the ring
template <int kTokenTiles>
struct ProductMemory {
  uint32_t at;
  const StreamedProductPlan::Memory& memory;

  __device__ uint32_t full(int stage) const { return at + 8 * stage; }
  __device__ uint32_t empty(int stage) const { return at + 8 * (kMaxStages + stage); }
  __device__ uint32_t x_barrier() const { return at + 8 * 2 * kMaxStages; }
  __device__ uint32_t ticket(int parity) const {
    return at + 8 * (2 * kMaxStages + 1) + 4 * parity;
  }
  __device__ uint32_t item(int stage) const { return at + 8 * (2 * kMaxStages + 2) + 4 * stage; }
  __device__ uint32_t sums(int parity, int warp, int token_tile, int lane) const {
    const int row = (parity * kProductWarps + warp) * kTokenTiles + token_tile;
    return at + 512 + (row * 32 + lane) * 16;
  }
  __device__ uint32_t x() const { return at + ProductHeaderBytes(kTokenTiles); }
  __device__ uint32_t stage(int stage) const {
    return x() + kTokenTiles * kTileHalf * memory.x_row_bytes + stage * kStageBytes;
  }
};

// A place on the ring.
struct RingPlace {
  int stage = 0;
  uint32_t phase = 0;
  __device__ void Advance(int num_stages) {
    if (++stage == num_stages) stage = 0, phase ^= 1;
  }
};

__device__ __forceinline__ int TileRow(const StreamedProductShape& shape, int tile, int row) {
  const int first =
      tile / shape.group_tiles * shape.group_rows + tile % shape.group_tiles * kTileHalf;
  return first + row % kTileHalf + row / kTileHalf * shape.distance;
}

// A warp that copies: of every tile the rows from kFeedRows * warp on. All lanes run this with the
// same values.
template <typename T, int kTokenTiles>
struct ProductFeed {
  const StreamedProductArgs& args;
  const ProductMemory<kTokenTiles> memory;
  const int part, warp, lane;
  RingPlace place;
  int issued = 0;
  bool has_waited = false;

  __device__ void Run(int first_item) {
    const StreamedProductPlan& plan = args.plan;
    const StreamedProductPlan::Memory& rules = memory.memory;
    const int tiles = args.shape.num_tiles();
    int item = first_item;
    for (int round = 0; item < tiles; ++round) {
      const bool draws = rules.has_tickets && round + 1 >= rules.static_rounds;
      uint32_t ticket = 0;
      if (draws) ticket = Draw(tiles);  // ahead of the copies: it takes its time
      CopyTile(item);
      item += plan.part_ctas;
      if (draws) item = rules.static_rounds * plan.part_ctas + Share(ticket, round & 1);
    }
    if (!has_waited) WaitAndCopyX();
    AwaitSlot();
    if (lane == 0) {
      ptx::StoreShared32(memory.item(place.stage), 0xffffffffu);
      ptx::Arrive(memory.full(place.stage));
    }
  }

 private:
  __device__ void AwaitSlot() {
    // The first round of slots is free.
    if (issued >= memory.memory.num_stages) {
      ptx::WaitBarrier(memory.empty(place.stage), place.phase ^ 1);
    }
  }

  // After the static items every CTA of the part draws until it draws too much: the last to do so
  // draws the largest ticket, and puts the counter back for the next launch.
  __device__ uint32_t Draw(int tiles) {
    if (!has_waited) WaitAndCopyX();  // a kernel before may still draw from this counter
    uint32_t ticket = 0;
    if (warp == 0 && lane == 0) {
      const uint32_t last = tiles - args.plan.part_ctas * (memory.memory.static_rounds - 1) - 1;
      ticket = atomicAdd(args.tickets + part, 1u);
      if (ticket == last) args.tickets[part] = 0;
    }
    return ticket;
  }
  // What the first thread drew. Two places, so that one barrier an item is enough.
  __device__ int Share(uint32_t ticket, int parity) const {
    if (warp == 0 && lane == 0) ptx::StoreShared32(memory.ticket(parity), ticket);
    SyncThreads<kFeedBarrier, kFeedThreads>();
    return static_cast<int>(ptx::LoadShared32(memory.ticket(parity)));
  }

  __device__ void CopyTile(int tile) {
    const StreamedProductPlan& plan = args.plan;
    const int tile_row = warp * kFeedRows + lane % kFeedRows;
    const int row = min(TileRow(args.shape, tile, tile_row), args.shape.n - 1);
    const T* from = static_cast<const T*>(args.weight) + int64_t{row} * args.shape.k +
                    int64_t{part} * plan.part_columns;
    for (int s = 0; s < plan.item_stages; ++s) {
      if (!has_waited && issued == memory.memory.num_stages) WaitAndCopyX();
      AwaitSlot();
      const int columns = min(kStageColumns, plan.part_columns - s * kStageColumns);
      const uint32_t full = memory.full(place.stage);
      if (lane == 0) {
        if (warp == 0) ptx::StoreShared32(memory.item(place.stage), tile);
        ptx::ArriveExpecting(full, kFeedRows * columns * 2);
      }
      __syncwarp();
      if (lane < kFeedRows) {
        ptx::CopyBulk(memory.stage(place.stage) + tile_row * kStageRowBytes,
                      from + s * kStageColumns, columns * 2, full);
      }
      place.Advance(memory.memory.num_stages);
      ++issued;
    }
  }

  __device__ void WaitAndCopyX() {
    ptx::WaitForPreviousGrid();
    has_waited = true;
    const int bytes = args.plan.part_columns * 2;
    if (warp == 0 && lane == 0) ptx::ArriveExpecting(memory.x_barrier(), args.rows * bytes);
    __syncwarp();
    for (int row = warp + kFeedWarps * lane; row < args.rows; row += kFeedThreads) {
      ptx::CopyBulkKept(memory.x() + row * memory.memory.x_row_bytes,
                        static_cast<const T*>(args.x) + int64_t{row} * args.shape.k +
                            int64_t{part} * args.plan.part_columns,
                        bytes, memory.x_barrier());
    }
  }
};

// What the end of a tile needs besides its sums; asked for before they are formed. Of lane 4 g + q:
// rows g and g + 8 of the tile, tokens 2 q and 2 q + 1 of the token tile.
struct EndOperands {
  float bias[2] = {};
  float2 turn[2] = {};  // of a token
};

// Writes tiles.
template <typename T>
struct ProductWriter {
  const StreamedProductArgs& args;
  const int part, token_tile, lane;

  __device__ int row(int tile) const { return TileRow(args.shape, tile, lane / 4); }
  __device__ int token(int i) const { return token_tile * 8 + lane % 4 * 2 + i; }

  __device__ __forceinline__ EndOperands Ask(int tile) const {
    EndOperands operands;
    if (args.end == ProductEnd::kParts) return operands;
    const bool is_rotary = args.end == ProductEnd::kRotary;
    const float* bias = is_rotary ? args.rotary.bias : args.bias;
    if (bias != nullptr) {
      operands.bias[0] = bias[row(tile)];
      operands.bias[1] = bias[row(tile) + args.shape.distance];
    }
    const int head_dim = args.rotary.head_dim;
    if (!is_rotary || row(tile) / head_dim >= args.rotary.num_qo_heads + args.rotary.num_kv_heads) {
      return operands;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (token(i) >= args.rows) continue;
      const int position = args.rotary.positions != nullptr ? args.rotary.positions[token(i)]
                                                            : args.rotary.first_position + token(i);
      operands.turn[i] =
          args.rotary.cos_sin[int64_t{position} * (head_dim / 2) + row(tile) % head_dim];
    }
    return operands;
  }

  // sums: row g of tokens 2 q and 2 q + 1, then row g + 8 of them.
  __device__ __forceinline__ void Write(int tile, const EndOperands& operands, float4 sums) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (token(i) >= args.rows) continue;
      const float low = (i == 0 ? sums.x : sums.y) + operands.bias[0];
      const float high = (i == 0 ? sums.z : sums.w) + operands.bias[1];
      if (args.end == ProductEnd::kParts) {
        WriteParts(tile, token(i), low, high);
      } else if (args.end == ProductEnd::kSwiGlu) {
        static_cast<T*>(args.out)[int64_t{token(i)} * args.shape.distance + row(tile)] =
            FromFloat<T>(SwiGlu(low, high));
      } else {
        WriteTurned(tile, token(i), operands.turn[i], low, high);
      }
    }
  }

 private:
  __device__ __forceinline__ void WriteParts(int tile, int token, float low, float high) const {
    float* to = static_cast<float*>(args.out) + (int64_t{part} * args.rows + token) * args.shape.n +
                row(tile);
    if (row(tile) < args.shape.n) to[0] = low;
    if (row(tile) + kTileHalf < args.shape.n) to[kTileHalf] = high;
  }

  // As RotaryRowsKernel does.
  __device__ __forceinline__ void WriteTurned(int tile, int token, float2 cos_sin, float a,
                                              float b) const {
    const RotaryRowsArgs& to = args.rotary;
    const int half = to.head_dim / 2;
    const int head = row(tile) / to.head_dim, c = row(tile) % to.head_dim;
    const bool is_v = head >= to.num_qo_heads + to.num_kv_heads;
    if (!is_v) {
      const float turned = a * cos_sin.x - b * cos_sin.y;
      b = b * cos_sin.x + a * cos_sin.y;
      a = turned;
    }
    if (head < to.num_qo_heads) {
      T* q = static_cast<T*>(to.q) + (int64_t{token} * to.num_qo_heads + head) * to.head_dim + c;
      q[0] = FromFloat<T>(a);
      q[half] = FromFloat<T>(b);
      return;
    }
    const int kv_head = (head - to.num_qo_heads) % to.num_kv_heads;
    uint16_t* kv =
        (is_v ? to.v : to.k) + kv_head * to.kv_head_stride + token * to.kv_row_stride + c;
    const __half low = __float2half_rn(a), high = __float2half_rn(b);
    kv[0] = __half_as_ushort(low);
    kv[half] = __half_as_ushort(high);
    // Whoever finds one writes the same value.
    if (!isfinite(__half2float(low)) || !isfinite(__half2float(high))) {
      to.not_finite[token * to.not_finite_stride] = 1;
    }
  }
};

// A warp that multiplies.
template <typename T, int kTokenTiles>
struct ProductMath {
  const StreamedProductArgs& args;
  const ProductMemory<kTokenTiles> memory;
  const int part, warp, lane;
  RingPlace place;

  __device__ void Run() {
    const ProductWriter<T> writer = {args, part, warp, lane};
    const bool writes = warp < kTokenTiles;
    ptx::WaitForPreviousGrid();
    ptx::WaitBarrier(memory.x_barrier(), 0);
    for (int parity = 0;; parity ^= 1) {
      ptx::WaitBarrier(memory.full(place.stage), place.phase);
      const int tile = static_cast<int>(ptx::LoadShared32(memory.item(place.stage)));
      if (tile < 0) return;
      EndOperands operands;
      if (writes) operands = writer.Ask(tile);
      float sums[kTokenTiles][4] = {};
      MultiplyTile(sums);
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        ptx::StoreShared128(memory.sums(parity, warp, t, lane),
                            make_uint4(__float_as_uint(sums[t][0]), __float_as_uint(sums[t][1]),
                                       __float_as_uint(sums[t][2]), __float_as_uint(sums[t][3])));
      }
      // One barrier a tile is enough: who writes these sums again, two tiles on, has passed the
      // next tile's barrier, and so has who reads them here.
      SyncThreads<kMathBarrier, kMathThreads>();
      if (writes) writer.Write(tile, operands, AddWarps(parity));
    }
  }

 private:
  __device__ __forceinline__ float4 AddWarps(int parity) const {
    float4 total = {};
#pragma unroll
    for (int w = 0; w < kProductWarps; ++w) {
      const uint4 x = ptx::LoadShared128(memory.sums(parity, w, warp, lane));
      total.x += __uint_as_float(x.x);
      total.y += __uint_as_float(x.y);
      total.z += __uint_as_float(x.z);
      total.w += __uint_as_float(x.w);
    }
    return total;
  }

  // The warp's columns of a tile: of each stage steps warp, warp + 8. A lane 4 g + q loads columns
  // 8 q .. 8 q + 7 of a step, of rows g and g + 8 of the weights and of token g, which is 16 bytes
  // each; the instructions take them as other columns than they are, x and weights alike.
  __device__ __forceinline__ void MultiplyTile(float (&sums)[kTokenTiles][4]) {
    const uint32_t of_lane = lane % 4 * 16;
    const uint32_t x_row = memory.x() + lane / 4 * memory.memory.x_row_bytes + of_lane;
    const uint32_t w_row = lane / 4 * kStageRowBytes + of_lane;
    for (int s = 0; s < args.plan.item_stages; ++s) {
      if (s > 0) ptx::WaitBarrier(memory.full(place.stage), place.phase);
      const int columns = min(kStageColumns, args.plan.part_columns - s * kStageColumns);
      const uint32_t w = memory.stage(place.stage) + w_row;
#pragma unroll
      for (int i = 0; i < kStageColumns / kColumnStep / kProductWarps; ++i) {
        const int at = (i * kProductWarps + warp) * kColumnStep;
        if (at >= columns) continue;
        const uint4 low = ptx::LoadShared128(w + at * 2);
        const uint4 high = ptx::LoadShared128(w + at * 2 + kTileHalf * kStageRowBytes);
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
          const uint4 x = ptx::LoadShared128(x_row + t * kTileHalf * memory.memory.x_row_bytes +
                                             (s * kStageColumns + at) * 2);
          Multiply(sums[t], low.x, high.x, low.y, high.y, x.x, x.y, T());
          Multiply(sums[t], low.z, high.z, low.w, high.w, x.z, x.w, T());
        }
      }
      __syncwarp();
      if (lane == 0) ptx::Arrive(memory.empty(place.stage));
      place.Advance(memory.memory.num_stages);
    }
  }
};

template <typename T, int kTokenTiles>
__global__ void __launch_bounds__(kProductThreads, 1)
    StreamedProductKernel(const __grid_constant__ StreamedProductArgs args) {
  extern __shared__ __align__(128) std::byte shared[];
  ptx::LetNextGridStart();
  const ProductMemory<kTokenTiles> memory = {ptx::SharedAddress(shared),
                                             args.plan.memory[kTokenTiles - 1]};
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < memory.memory.num_stages; ++stage) {
      ptx::InitBarrier(memory.full(stage), kFeedWarps);
      ptx::InitBarrier(memory.empty(stage), kProductWarps);
    }
    ptx::InitBarrier(memory.x_barrier(), 1);
    ptx::FenceBarrierInit();
  }
  __syncthreads();
  const int cta = static_cast<int>(blockIdx.x);
  const int part = cta % args.plan.num_parts;
  if (warp >= kProductWarps) {
    ProductFeed<T, kTokenTiles>{args, memory, part, warp - kProductWarps, lane}.Run(
        cta / args.plan.num_parts);
  } else {
    ProductMath<T, kTokenTiles>{args, memory, part, warp, lane}.Run();
  }
}

}  // namespace

cudaError_t LaunchStreamedProduct(WeightType type, const StreamedProductArgs& args,
                                  cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  const StreamedProductPlan& plan = args.plan;
  const dim3 grid(plan.num_parts * plan.part_ctas);
  const int bytes = plan.memory_of(args.rows).shared_bytes;
  return ForType(type, [&]<typename T>(T) {
    const auto kernel =
        args.rows > kTileHalf ? &StreamedProductKernel<T, 2> : &StreamedProductKernel<T, 1>;
    return LaunchOverlapping(kernel, grid, kProductThreads, bytes, stream, args);
  });
}

cudaError_t PrepareStreamedProducts(ProductDevice* device) {
  int index = 0;
  cudaError_t error = cudaGetDevice(&index);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&device->num_sms, cudaDevAttrMultiProcessorCount, index);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&device->shared_bytes_max, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                 index);
  if (error != cudaSuccess) return error;
  for (const WeightType type : {WeightType::kFloat16, WeightType::kBfloat16}) {
    error = ForType(type, [&]<typename T>(T) {
      const cudaError_t first = cudaFuncSetAttribute(&StreamedProductKernel<T, 1>,
                                                     cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                     device->shared_bytes_max);
      if (first != cudaSuccess) return first;
      return cudaFuncSetAttribute(&StreamedProductKernel<T, 2>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  device->shared_bytes_max);
    });
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace pkv
