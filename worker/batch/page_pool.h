#ifndef PKV_WORKER_BATCH_PAGE_POOL_H_
#define PKV_WORKER_BATCH_PAGE_POOL_H_

#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "pkv/block/object_header.h"
#include "pkv/block/object_key.h"

namespace pkv {

// Which page of a BatchEngine is whose. A page is in one of three states:
//
//   free        --Acquire-->  referenced  --Release of the last reference-->  free, or cached
//   cached      --Acquire-->  referenced  (shared, or evicted for another block)
//
// A referenced page may be given a name by Publish(), the key of the block that it holds. Other
// requests find it by that name and share it; when nobody refers to it any more it stays, cached,
// until its page is needed: the page released longest ago goes first.
//
// Knows nothing of bytes: what a page holds is the engine's business. Thread-compatible.
class PagePool {
 public:
  // REQUIRES: num_pages >= 0. All are free.
  explicit PagePool(int num_pages);

  struct Resident {
    int32_t page = 0;
    ObjectHeader header;
  };
  // The page with this name, referenced or cached.
  std::optional<Resident> Find(const ObjectKey& key) const;

  // Adds a reference to each of `shared`, pages that Find() returned, no page twice, and gives
  // `num_fresh` pages with one reference and no name: free ones first, then cached ones, which lose
  // their names. nullopt: there are not so many; nothing was changed.
  std::optional<std::vector<int32_t>> Acquire(std::span<const int32_t> shared, int num_fresh);

  // Names a page for the block that it holds now. When another page has the name, with an equal
  // header, that one keeps it. A different header means that the block was stored again, against
  // another pattern table: the other page loses the name, and when it is cached it becomes free.
  // REQUIRES: the page is referenced and has no name; the block appends no patterns.
  void Publish(int32_t page, const ObjectHeader& header);

  // Ends one reference of each page. Of pages that stay cached the first is kept longest: give a
  // sequence's pages in the order of its blocks, whose first ones most other prompts share.
  // REQUIRES: each page is referenced.
  void Release(std::span<const int32_t> pages);

  struct Counts {
    int free = 0, referenced = 0, cached = 0;  // adding up to num_pages
  };
  Counts counts() const;
  int num_pages() const { return static_cast<int>(pages_.size()); }
  int num_references(int32_t page) const { return pages_[page].num_references; }
  // Since creation: cached pages taken for another block; references to pages found by name.
  int64_t num_evictions() const { return num_evictions_; }
  int64_t num_shared() const { return num_shared_; }

 private:
  struct Page {
    int num_references = 0;
    std::optional<ObjectHeader> header;      // with a name
    std::list<int32_t>::iterator cached_at;  // valid while cached
  };
  void Forget(Page& page);

  std::vector<Page> pages_;
  std::vector<int32_t> free_;  // the last one is taken first
  std::list<int32_t> cached_;  // released longest ago first
  std::map<ObjectKey, int32_t> by_name_;
  int64_t num_evictions_ = 0, num_shared_ = 0;
};

}  // namespace pkv

#endif  // PKV_WORKER_BATCH_PAGE_POOL_H_
