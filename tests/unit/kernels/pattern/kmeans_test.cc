#include "kernels/pattern/kmeans.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

constexpr int kHeadDim = 64;

// Rows whose first channel is given and the rest zero.
std::vector<Float16Bits> OnALine(const std::vector<float>& positions) {
  std::vector<Float16Bits> rows(positions.size() * kHeadDim);
  for (size_t i = 0; i < positions.size(); ++i) rows[i * kHeadDim] = FloatToFloat16(positions[i]);
  return rows;
}

std::vector<float> Positions(const KMeans& kmeans, int num_clusters) {
  std::vector<float> positions(num_clusters);
  for (int m = 0; m < num_clusters; ++m) {
    positions[m] = kmeans.centroids()[static_cast<size_t>(m) * kHeadDim];
  }
  return positions;
}

double Inertia(const std::vector<Float16Bits>& rows, const std::vector<float>& centroids) {
  double sum = 0;
  for (size_t r = 0; r < rows.size(); r += kHeadDim) {
    double best = std::numeric_limits<double>::infinity();
    for (size_t c = 0; c < centroids.size(); c += kHeadDim) {
      double distance = 0;
      for (int j = 0; j < kHeadDim; ++j) {
        const double gap = double{Float16ToFloat(rows[r + j])} - centroids[c + j];
        distance += gap * gap;
      }
      best = std::min(best, distance);
    }
    sum += best;
  }
  return sum;
}

TEST(KMeansTest, StartsFromRowsAtEqualStrides) {
  const auto rows = OnALine({0, 1, 2, 3, 4, 5, 6});
  EXPECT_EQ(Positions(KMeans(rows.data(), 7, kHeadDim, 3), 3), (std::vector<float>{0, 2, 4}));
  EXPECT_EQ(Positions(KMeans(rows.data(), 7, kHeadDim, 7), 7),
            (std::vector<float>{0, 1, 2, 3, 4, 5, 6}));
}

TEST(KMeansTest, MovesEachCentroidToTheMeanOfItsRows) {
  const auto rows = OnALine({0, 1, 10, 12});
  KMeans kmeans(rows.data(), 4, kHeadDim, 2);  // starts at 0 and 10
  EXPECT_EQ(kmeans.Iterate(), 1.0);
  EXPECT_EQ(Positions(kmeans, 2), (std::vector<float>{0.5f, 11.0f}));
  EXPECT_EQ(kmeans.Iterate(), 0.0);
}

TEST(KMeansTest, ATieGoesToTheLowestCentroid) {
  const auto rows = OnALine({0, 1, 2, 2});  // starts at 0 and 2; 1 is as near to both
  KMeans kmeans(rows.data(), 4, kHeadDim, 2);
  kmeans.Iterate();
  EXPECT_EQ(Positions(kmeans, 2), (std::vector<float>{0.5f, 2.0f}));
}

TEST(KMeansTest, AnEmptyClusterRestartsAtTheFarthestRow) {
  // Starts at 5, 5, 6 (rows 0, 2, 4): the second 5 gets nothing.
  const auto rows = OnALine({5, 5, 5, 5, 6, 40});
  KMeans kmeans(rows.data(), 6, kHeadDim, 3);
  kmeans.Iterate();
  EXPECT_EQ(Positions(kmeans, 3), (std::vector<float>{5.0f, 40.0f, 23.0f}));
}

TEST(KMeansTest, SeveralEmptyClustersTakeTheNextFarthestRows) {
  // Starts at rows 0, 2, 4, all 1; clusters 1 and 2 are empty. 9 is farther from 1 than -5 is.
  const auto rows = OnALine({1, 1, 1, -5, 1, 9});
  KMeans kmeans(rows.data(), 6, kHeadDim, 3);
  kmeans.Iterate();
  const auto positions = Positions(kmeans, 3);
  EXPECT_EQ(positions[1], 9.0f);
  EXPECT_EQ(positions[2], -5.0f);
}

TEST(KMeansTest, AllRowsEqualStaysThere) {
  const auto rows = OnALine(std::vector<float>(10, 2.5f));
  KMeans kmeans(rows.data(), 10, kHeadDim, 4);
  EXPECT_EQ(kmeans.Iterate(), 0.0);
  EXPECT_EQ(Positions(kmeans, 4), std::vector<float>(4, 2.5f));
}

TEST(KMeansTest, InertiaNeverGrows) {
  constexpr uint64_t kSeed = 5;
  RecordProperty("seed", static_cast<int>(kSeed));
  const TestTensor tensor = RandomTensor(kSeed, 1, 500, kHeadDim);
  KMeans kmeans(tensor.k.data(), 500, kHeadDim, 16);
  double before = Inertia(tensor.k, kmeans.centroids());
  const double start = before;
  for (int i = 0; i < 12; ++i) {
    kmeans.Iterate();
    const double after = Inertia(tensor.k, kmeans.centroids());
    // Exact arithmetic never grows; centroids are rounded to fp32, 2^-24 of what they measure.
    ASSERT_LE(after, before * (1 + 0x1.0p-20)) << "iteration " << i;
    before = after;
  }
  EXPECT_LT(before, start);
}

}  // namespace
}  // namespace pkv
