#include "worker/batch/page_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Optional;

// Header of a block with this name; `bank` tells two storings of it apart.
ObjectHeader Block(uint8_t name, uint8_t bank = 0) {
  ObjectHeader header;
  header.kind = ObjectKind::kBlock;
  header.id.bytes[0] = name;
  header.table.bytes[0] = bank;
  return header;
}
ObjectKey Key(uint8_t name) { return Block(name).key(); }

std::vector<int32_t> Take(PagePool& pool, int count) {
  std::optional<std::vector<int32_t>> pages = pool.Acquire({}, count);
  EXPECT_TRUE(pages.has_value());
  return pages.value_or(std::vector<int32_t>());
}

void ExpectCounts(const PagePool& pool, int free, int referenced, int cached) {
  const PagePool::Counts counts = pool.counts();
  EXPECT_EQ(counts.free, free);
  EXPECT_EQ(counts.referenced, referenced);
  EXPECT_EQ(counts.cached, cached);
}

TEST(PagePoolTest, GivesEveryPageOnceAndThenNone) {
  PagePool pool(3);
  ExpectCounts(pool, 3, 0, 0);
  std::vector<int32_t> pages = Take(pool, 3);
  std::sort(pages.begin(), pages.end());
  EXPECT_THAT(pages, ElementsAre(0, 1, 2));
  EXPECT_EQ(pool.Acquire({}, 1), std::nullopt);
  EXPECT_THAT(pool.Acquire({}, 0), Optional(IsEmpty()));
  ExpectCounts(pool, 0, 3, 0);
}

TEST(PagePoolTest, APoolOfNoPagesGivesNone) {
  PagePool pool(0);
  EXPECT_EQ(pool.Acquire({}, 1), std::nullopt);
  EXPECT_THAT(pool.Acquire({}, 0), Optional(IsEmpty()));
}

TEST(PagePoolTest, AnUnnamedPageIsFreeOnceReleased) {
  PagePool pool(2);
  const std::vector<int32_t> pages = Take(pool, 2);
  pool.Release(std::span(pages).first(1));
  ExpectCounts(pool, 1, 1, 0);
  EXPECT_THAT(Take(pool, 1), ElementsAre(pages[0]));
}

TEST(PagePoolTest, ANamedPageIsFoundWhileReferencedAndAfter) {
  PagePool pool(2);
  const std::vector<int32_t> pages = Take(pool, 1);
  EXPECT_FALSE(pool.Find(Key(1)).has_value());
  pool.Publish(pages[0], Block(1));
  EXPECT_EQ(pool.Find(Key(1))->page, pages[0]);
  pool.Release(pages);
  ExpectCounts(pool, 1, 0, 1);
  ASSERT_TRUE(pool.Find(Key(1)).has_value());
  EXPECT_EQ(pool.Find(Key(1))->header, Block(1));
  EXPECT_FALSE(pool.Find(Key(2)).has_value());
}

TEST(PagePoolTest, AVariantIsPartOfTheName) {
  PagePool pool(1);
  const std::vector<int32_t> pages = Take(pool, 1);
  pool.Publish(pages[0], Block(1));
  ObjectHeader other = Block(1);
  other.params_digest = 7;
  EXPECT_FALSE(pool.Find(other.key()).has_value());
}

TEST(PagePoolTest, ASharedPageStaysUntilItsLastReferenceEnds) {
  PagePool pool(2);
  const std::vector<int32_t> pages = Take(pool, 1);
  pool.Publish(pages[0], Block(1));
  ASSERT_TRUE(pool.Acquire(pages, 0).has_value());
  EXPECT_EQ(pool.num_references(pages[0]), 2);
  EXPECT_EQ(pool.num_shared(), 1);
  pool.Release(pages);
  ExpectCounts(pool, 1, 1, 0);
  pool.Release(pages);
  ExpectCounts(pool, 1, 0, 1);
}

TEST(PagePoolTest, EvictsTheBlockReleasedLongestAgoAndOnlyWhenNoPageIsFree) {
  PagePool pool(3);
  const std::vector<int32_t> a = Take(pool, 1), b = Take(pool, 1);
  pool.Publish(a[0], Block(1));
  pool.Publish(b[0], Block(2));
  pool.Release(b);
  pool.Release(a);
  const std::vector<int32_t> free = Take(pool, 1);
  EXPECT_EQ(pool.num_evictions(), 0);
  EXPECT_THAT(Take(pool, 1), ElementsAre(b[0]));
  EXPECT_EQ(pool.num_evictions(), 1);
  EXPECT_FALSE(pool.Find(Key(2)).has_value());
  EXPECT_TRUE(pool.Find(Key(1)).has_value());
}

TEST(PagePoolTest, KeepsTheFirstBlocksOfASequenceLongest) {
  PagePool pool(3);
  const std::vector<int32_t> pages = Take(pool, 3);
  for (int i = 0; i < 3; ++i) pool.Publish(pages[i], Block(i));
  pool.Release(pages);
  for (int i = 2; i >= 0; --i) {
    EXPECT_THAT(Take(pool, 1), ElementsAre(pages[i]));
    EXPECT_FALSE(pool.Find(Key(i)).has_value());
  }
}

TEST(PagePoolTest, UseMakesABlockTheLastToBeEvicted) {
  PagePool pool(2);
  const std::vector<int32_t> a = Take(pool, 1), b = Take(pool, 1);
  pool.Publish(a[0], Block(1));
  pool.Publish(b[0], Block(2));
  pool.Release(a);
  pool.Release(b);
  ASSERT_TRUE(pool.Acquire(a, 0).has_value());
  pool.Release(a);
  EXPECT_THAT(Take(pool, 1), ElementsAre(b[0]));
}

TEST(PagePoolTest, SharedPagesAreNotEvictedForTheFreshOnesOfTheSameRequest) {
  PagePool pool(2);
  const std::vector<int32_t> pages = Take(pool, 2);
  pool.Publish(pages[0], Block(1));
  pool.Publish(pages[1], Block(2));
  pool.Release(pages);
  EXPECT_EQ(pool.Acquire(pages, 1), std::nullopt) << "two are cached, but both are asked for";
  ExpectCounts(pool, 0, 0, 2);
  EXPECT_EQ(pool.num_shared(), 0);
  EXPECT_EQ(pool.num_evictions(), 0);
  // The refusal left the order as it was: the later block goes first.
  EXPECT_THAT(pool.Acquire(std::span(pages).first(1), 1), Optional(ElementsAre(pages[1])));
}

TEST(PagePoolTest, ASecondCopyOfABlockGetsNoNameAndIsFreeOnceReleased) {
  PagePool pool(2);
  const std::vector<int32_t> a = Take(pool, 1), b = Take(pool, 1);
  pool.Publish(a[0], Block(1));
  pool.Publish(b[0], Block(1));
  EXPECT_EQ(pool.Find(Key(1))->page, a[0]);
  pool.Release(b);
  ExpectCounts(pool, 1, 1, 0);
}

TEST(PagePoolTest, ABlockStoredAgainTakesTheNameFromACachedPage) {
  PagePool pool(2);
  const std::vector<int32_t> a = Take(pool, 1);
  pool.Publish(a[0], Block(1, /*bank=*/1));
  pool.Release(a);
  const std::vector<int32_t> b = Take(pool, 1);
  ASSERT_NE(a, b);
  pool.Publish(b[0], Block(1, /*bank=*/2));
  EXPECT_EQ(pool.Find(Key(1))->page, b[0]);
  EXPECT_EQ(pool.Find(Key(1))->header, Block(1, 2));
  ExpectCounts(pool, 1, 1, 0);
}

TEST(PagePoolTest, ABlockStoredAgainTakesTheNameFromAReferencedPage) {
  PagePool pool(2);
  const std::vector<int32_t> a = Take(pool, 1), b = Take(pool, 1);
  pool.Publish(a[0], Block(1, 1));
  pool.Publish(b[0], Block(1, 2));
  EXPECT_EQ(pool.Find(Key(1))->page, b[0]);
  pool.Release(a);
  ExpectCounts(pool, 1, 1, 0);
  pool.Release(b);
  ExpectCounts(pool, 1, 0, 1);
}

TEST(PagePoolDeathTest, RefusesWhatWouldBreakItsAccounts) {
  PagePool pool(2);
  const std::vector<int32_t> pages = Take(pool, 1);
  ObjectHeader appends = Block(1);
  appends.flags = kFlagAppendsV;
  EXPECT_DEATH(pool.Publish(pages[0], appends), "flags");
  EXPECT_DEATH(pool.Publish(1 - pages[0], Block(1)), "references 0");
  EXPECT_DEATH(pool.Release(std::vector<int32_t>{1 - pages[0]}), "is not referenced");
  EXPECT_DEATH((void)pool.Acquire(pages, 0), "has no name");
  pool.Publish(pages[0], Block(1));
  EXPECT_DEATH(pool.Publish(pages[0], Block(2)), "references 1");
}

// The rules of page_pool.h over plain containers: what is cached has the time of its release.
struct NaivePool {
  explicit NaivePool(int num_pages) : references(num_pages, 0), names(num_pages) {
    for (int i = 0; i < num_pages; ++i) released_at[i] = -1;
  }

  std::optional<int32_t> Find(uint8_t name) const {
    for (size_t i = 0; i < names.size(); ++i) {
      if (names[i].has_value() && names[i]->id.bytes[0] == name) return i;
    }
    return std::nullopt;
  }
  bool CanTake(const std::vector<int32_t>& shared, int num_fresh) const {
    int available = 0;
    for (size_t i = 0; i < references.size(); ++i) {
      const bool wanted = std::count(shared.begin(), shared.end(), int32_t(i)) > 0;
      available += references[i] == 0 && !wanted;
    }
    return num_fresh <= available;
  }
  // Whether the pool was right to give this page; then it is taken.
  bool TakeFresh(int32_t page) {
    if (references[page] != 0) return false;
    if (names[page].has_value()) {
      for (size_t i = 0; i < references.size(); ++i) {
        if (references[i] != 0) continue;
        if (!names[i].has_value()) return false;
        if (released_at[i] < released_at[page]) return false;
      }
      names[page].reset();
      ++evictions;
    }
    references[page] = 1;
    return true;
  }
  void Publish(int32_t page, const ObjectHeader& header) {
    const std::optional<int32_t> other = Find(header.id.bytes[0]);
    if (other.has_value()) {
      if (*names[*other] == header) return;
      names[*other].reset();
    }
    names[page] = header;
  }
  void Release(const std::vector<int32_t>& pages) {
    for (auto page = pages.rbegin(); page != pages.rend(); ++page) {
      --references[*page];
      released_at[*page] = now++;
    }
  }

  std::vector<int> references;
  std::vector<std::optional<ObjectHeader>> names;
  std::map<int32_t, int64_t> released_at;
  int64_t now = 0, evictions = 0;
};

class PagePoolModelTest : public testing::TestWithParam<int> {
 protected:
  static constexpr int kNumNames = 12;

  void ExpectSameState() {
    PagePool::Counts counts;
    for (int i = 0; i < pool_.num_pages(); ++i) {
      ASSERT_EQ(pool_.num_references(i), naive_.references[i]) << "page " << i;
      const bool is_referenced = naive_.references[i] > 0;
      counts.referenced += is_referenced;
      counts.cached += !is_referenced && naive_.names[i].has_value();
      counts.free += !is_referenced && !naive_.names[i].has_value();
    }
    ExpectCounts(pool_, counts.free, counts.referenced, counts.cached);
    for (int name = 0; name < kNumNames; ++name) {
      const auto found = pool_.Find(Key(name));
      const auto wanted = naive_.Find(name);
      ASSERT_EQ(found.has_value(), wanted.has_value()) << "name " << name;
      if (!found.has_value()) continue;
      ASSERT_EQ(found->page, *wanted);
      ASSERT_EQ(found->header, *naive_.names[*wanted]);
    }
    ASSERT_EQ(pool_.num_evictions(), naive_.evictions);
  }

  // What a request does when it comes: shares what it finds of a random list of names.
  void Acquire() {
    std::vector<int32_t> shared;
    for (int name = 0; name < kNumNames; ++name) {
      if (random_.Below(3) != 0) continue;
      if (const auto found = pool_.Find(Key(name))) shared.push_back(found->page);
    }
    const int num_fresh = random_.Below(4);
    const bool can = naive_.CanTake(shared, num_fresh);
    const std::optional<std::vector<int32_t>> fresh = pool_.Acquire(shared, num_fresh);
    ASSERT_EQ(fresh.has_value(), can);
    if (!can) return;
    num_shared_ += static_cast<int64_t>(shared.size());
    for (const int32_t page : shared) ++naive_.references[page];
    for (const int32_t page : *fresh) ASSERT_TRUE(naive_.TakeFresh(page)) << "page " << page;
    std::vector<int32_t> pages = shared;
    pages.insert(pages.end(), fresh->begin(), fresh->end());
    holders_.push_back(pages);
  }
  void Publish() {
    const std::vector<int32_t>& pages = holders_[random_.Below(int(holders_.size()))];
    for (const int32_t page : pages) {
      if (naive_.names[page].has_value() || random_.Below(2) == 0) continue;
      const ObjectHeader header = Block(random_.Below(kNumNames), random_.Below(2));
      pool_.Publish(page, header);
      naive_.Publish(page, header);
    }
  }
  void Release() {
    const auto holder = holders_.begin() + random_.Below(int(holders_.size()));
    pool_.Release(*holder);
    naive_.Release(*holder);
    holders_.erase(holder);
  }

  TestRandom random_{uint64_t(GetParam())};
  PagePool pool_{1 + GetParam() % 9};
  NaivePool naive_{1 + GetParam() % 9};
  std::vector<std::vector<int32_t>> holders_;
  int64_t num_shared_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Seeds, PagePoolModelTest, testing::Range(0, 40));

TEST_P(PagePoolModelTest, DoesWhatThePlainModelDoes) {
  for (int i = 0; i < 400; ++i) {
    const int action = holders_.empty() ? 0 : random_.Below(3);
    if (action == 0) Acquire();
    if (action == 1) Publish();
    if (action == 2) Release();
    if (HasFatalFailure()) return;
    ExpectSameState();
    ASSERT_FALSE(HasFailure()) << "step " << i;
  }
  EXPECT_EQ(pool_.num_shared(), num_shared_);
  while (!holders_.empty()) Release();
  EXPECT_EQ(pool_.counts().referenced, 0);
}

}  // namespace
}  // namespace pkv
