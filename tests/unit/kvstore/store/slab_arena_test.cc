#include "kvstore/store/slab_arena.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/base/checked_math.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kUnit = kArenaUnitBytes;

std::unique_ptr<SlabArena> MakeArena(uint64_t units) {
  return SlabArena::Create(units * kUnit).value();
}

TEST(SlabArenaTest, RefusesACapacityBelowOneUnit) {
  EXPECT_THAT(SlabArena::Create(kUnit - 1),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("4095")));
  EXPECT_THAT(SlabArena::Create(kUnit), IsOk());
}

TEST(SlabArenaTest, RoundsTheCapacityDown) {
  EXPECT_EQ(SlabArena::Create(3 * kUnit - 1).value()->capacity_bytes(), 2 * kUnit);
}

TEST(SlabArenaTest, GivesTheWholeCapacityAndNotAByteMore) {
  auto arena = MakeArena(4);
  EXPECT_FALSE(arena->Allocate(4 * kUnit + 1));
  const auto all = arena->Allocate(4 * kUnit);
  ASSERT_TRUE(all);
  EXPECT_EQ(arena->used_bytes(), 4 * kUnit);
  EXPECT_EQ(arena->largest_hole_bytes(), 0u);
  EXPECT_FALSE(arena->Allocate(1));
  arena->Free(*all);
  EXPECT_EQ(arena->used_bytes(), 0u);
  EXPECT_EQ(arena->largest_hole_bytes(), 4 * kUnit);
}

TEST(SlabArenaTest, PopulatesEveryPageAndKeepsTheContent) {
  const uint64_t units = (uint64_t{150} << 20) / kUnit + 1;  // two pieces and a part
  auto arena = MakeArena(units);
  const auto pages = [&] {
    std::vector<unsigned char> resident(units);
    EXPECT_EQ(mincore(arena->memory().data(), units * kUnit, resident.data()), 0);
    return std::count_if(resident.begin(), resident.end(), [](unsigned char c) { return c & 1; });
  };
  const auto extent = arena->Allocate(3 * kUnit);
  ASSERT_TRUE(extent);
  std::memset(arena->Bytes(*extent).data(), 7, extent->bytes);
  EXPECT_EQ(pages(), 3);
  ThreadPool pool(2);
  ASSERT_THAT(arena->Populate(pool), IsOk());
  EXPECT_EQ(pages(), static_cast<int64_t>(units));
  for (const std::byte byte : arena->Bytes(*extent)) ASSERT_EQ(byte, std::byte{7});
}

TEST(SlabArenaTest, RefusesAnEmptyExtent) { EXPECT_FALSE(MakeArena(1)->Allocate(0)); }

TEST(SlabArenaTest, TakesTheSmallestHoleThatFits) {
  auto arena = MakeArena(10);
  const auto a = arena->Allocate(3 * kUnit);
  const auto b = arena->Allocate(1 * kUnit);
  const auto c = arena->Allocate(2 * kUnit);
  const auto d = arena->Allocate(1 * kUnit);
  ASSERT_TRUE(a && b && c && d);
  arena->Free(*a);
  arena->Free(*c);
  // Holes of 3 (a), 2 (c) and 3 (the rest) units.
  EXPECT_EQ(arena->Allocate(2 * kUnit)->offset, c->offset);
  EXPECT_EQ(arena->Allocate(3 * kUnit)->offset, a->offset);
}

TEST(SlabArenaTest, JoinsHolesOnBothSides) {
  auto arena = MakeArena(3);
  const auto a = arena->Allocate(kUnit);
  const auto b = arena->Allocate(kUnit);
  const auto c = arena->Allocate(kUnit);
  ASSERT_TRUE(a && b && c);
  arena->Free(*a);
  arena->Free(*c);
  EXPECT_FALSE(arena->Allocate(2 * kUnit));
  arena->Free(*b);
  EXPECT_EQ(arena->largest_hole_bytes(), 3 * kUnit);
}

TEST(SlabArenaTest, ShowsTheSameBytesThroughItsDescriptor) {
  auto arena = MakeArena(2);
  const auto first = arena->Allocate(kUnit);
  const auto second = arena->Allocate(kUnit);
  ASSERT_TRUE(first && second);
  std::memcpy(arena->Bytes(*second).data(), "pattern", 7);
  void* other = mmap(nullptr, 2 * kUnit, PROT_READ, MAP_SHARED, arena->fd(), 0);
  ASSERT_NE(other, MAP_FAILED);
  EXPECT_EQ(std::memcmp(static_cast<char*>(other) + second->offset, "pattern", 7), 0);
  munmap(other, 2 * kUnit);
}

// Whoever gets the descriptor reads, and does nothing else: not by a mapping, not by write(), not
// by opening it again, not by taking the seals off.
TEST(SlabArenaTest, NobodyElseCanWriteShrinkOrGrowIt) {
  auto arena = MakeArena(2);
  EXPECT_EQ(fcntl(arena->fd(), F_GET_SEALS) & kArenaSeals, kArenaSeals);
  const int again = open(absl::StrCat("/proc/self/fd/", arena->fd()).c_str(), O_RDWR | O_CLOEXEC);
  for (const int fd : {arena->fd(), again}) {
    ASSERT_GE(fd, 0);
    EXPECT_EQ(mmap(nullptr, kUnit, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    EXPECT_EQ(pwrite(fd, "x", 1, 0), -1);
    EXPECT_EQ(ftruncate(fd, kUnit), -1);
    EXPECT_EQ(ftruncate(fd, 3 * kUnit), -1);
    EXPECT_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
    void* mapped = mmap(nullptr, kUnit, PROT_READ, MAP_SHARED, fd, 0);
    ASSERT_NE(mapped, MAP_FAILED);
    EXPECT_EQ(mprotect(mapped, kUnit, PROT_READ | PROT_WRITE), -1);
    munmap(mapped, kUnit);
  }
  close(again);
  // The store itself still writes.
  std::memcpy(arena->Bytes(*arena->Allocate(kUnit)).data(), "x", 1);
}

TEST(SlabArenaDeathTest, StopsAtASecondFree) {
  auto arena = MakeArena(4);
  const auto a = arena->Allocate(kUnit);
  const auto b = arena->Allocate(kUnit);
  ASSERT_TRUE(a && b);
  arena->Free(*a);
  EXPECT_DEATH(arena->Free(*a), "freed twice");
}

// Extents never overlap, stay inside, and the sum of their bytes is what the arena says.
TEST(SlabArenaTest, KeepsExtentsApartUnderRandomUse) {
  constexpr uint32_t kSeed = 20240607;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  auto arena = MakeArena(64);
  std::vector<bool> taken(64, false);
  std::vector<SlabArena::Extent> live;
  for (int step = 0; step < 20000; ++step) {
    if (live.empty() || random() % 2 == 0) {
      const uint64_t bytes = 1 + random() % (9 * kUnit);
      const auto extent = arena->Allocate(bytes);
      if (!extent) {
        ASSERT_LT(arena->largest_hole_bytes(), AlignUp(bytes, kUnit));
        continue;
      }
      ASSERT_EQ(extent->bytes, AlignUp(bytes, kUnit));
      for (uint64_t u = extent->offset / kUnit; u < (extent->offset + extent->bytes) / kUnit; ++u) {
        ASSERT_FALSE(taken.at(u)) << "unit " << u << " given twice at step " << step;
        taken[u] = true;
      }
      live.push_back(*extent);
    } else {
      std::swap(live[random() % live.size()], live.back());
      const SlabArena::Extent extent = live.back();
      live.pop_back();
      arena->Free(extent);
      for (uint64_t u = extent.offset / kUnit; u < (extent.offset + extent.bytes) / kUnit; ++u) {
        taken[u] = false;
      }
    }
    uint64_t used = 0;
    for (const auto& extent : live) used += extent.bytes;
    ASSERT_EQ(arena->used_bytes(), used);
  }
  for (const auto& extent : live) arena->Free(extent);
  EXPECT_EQ(arena->largest_hole_bytes(), arena->capacity_bytes());
}

}  // namespace
}  // namespace pkv
