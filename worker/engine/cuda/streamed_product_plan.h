#ifndef PKV_WORKER_ENGINE_CUDA_STREAMED_PRODUCT_PLAN_H_
#define PKV_WORKER_ENGINE_CUDA_STREAMED_PRODUCT_PLAN_H_

#include "absl/status/statusor.h"

namespace pkv {

// The largest number of rows that StreamedProduct multiplies.
inline constexpr int kStreamedRowsMax = 16;
// A CTA takes so many rows of the weights at a time: the rows of an mma's A operand, as two halves
// of kTileHalf consecutive rows.
inline constexpr int kTileRows = 16, kTileHalf = 8;
// So many columns of them are one stage of the ring: 1 KB of each row.
inline constexpr int kStageColumns = 512;
// A row takes 64 bytes more than it has, an odd number of half cache lines: two rows that a quarter
// warp reads stand in different banks.
inline constexpr int kStageRowBytes = kStageColumns * 2 + 64;
inline constexpr int kStageBytes = kTileRows * kStageRowBytes;
// Columns that a warp multiplies at once.
inline constexpr int kColumnStep = 32;
inline constexpr int kProductWarps = 8;  // that multiply; others copy
inline constexpr int kMaxStages = 16;

// Of x [rows, k] w [n, k]^T.
struct StreamedProductShape {
  int n = 0, k = 0;
  // The halves of a tile's rows stand `distance` apart; `group_tiles` consecutive tiles cover
  // `group_rows` consecutive rows, tile i of a group the rows from 8 i and from 8 i + distance.
  int distance = kTileHalf;
  int group_tiles = 1, group_rows = kTileRows;
  // Into how many parts k may be cut. The caller adds up their products.
  int max_parts = 1;

  constexpr int num_tiles() const { return (n + kTileRows - 1) / kTileRows; }
};

// How the work is dealt out. An item is a tile of one part; CTA i multiplies items of part
// i % num_parts alone, so it keeps that part of x only.
//
//   items of a part, in the order in which its CTAs take them:
//   | static_rounds x part_ctas, CTA by CTA in turn | the rest, by ticket |
//
// The static ones fill the ring before the kernel before is done; a ticket is drawn after that. An
// item's bits do not depend on who computes it, nor on the number of rows.
struct StreamedProductPlan {
  int num_parts = 1, part_columns = 0;
  int part_ctas = 0;
  int item_stages = 0;
  // With up to 8 rows of x, and with up to 16.
  struct Memory {
    int x_row_bytes = 0;
    int num_stages = 0;
    int shared_bytes = 0;
    int static_rounds = 0;
    bool has_tickets = false;
  };
  Memory memory[2];
  constexpr const Memory& memory_of(int rows) const { return memory[rows > 8]; }
};

// Shared memory before x and the ring: barriers, the items of stages, and twice the sums of a tile
// of every warp.
constexpr int ProductHeaderBytes(int token_tiles) {
  return 512 + 2 * kProductWarps * token_tiles * 512;
}

//   Unimplemented  n or k is not positive, k is no multiple of 32, or x does not fit beside a ring
absl::StatusOr<StreamedProductPlan> PlanStreamedProduct(const StreamedProductShape& shape,
                                                        int num_sms, int shared_bytes_max);

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_CUDA_STREAMED_PRODUCT_PLAN_H_
