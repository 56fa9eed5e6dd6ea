#include "worker/batch/page_pool.h"

#include <algorithm>

#include "proto/base/log.h"

namespace pkv {

PagePool::PagePool(int num_pages) : pages_(num_pages), free_(num_pages) {
  // Page 0 is taken first.
  for (int i = 0; i < num_pages; ++i) free_[i] = num_pages - 1 - i;
}

std::optional<PagePool::Resident> PagePool::Find(const ObjectKey& key) const {
  const auto it = by_name_.find(key);
  if (it == by_name_.end()) return std::nullopt;
  return Resident{it->second, *pages_[it->second].header};
}

std::optional<std::vector<int32_t>> PagePool::Acquire(std::span<const int32_t> shared,
                                                      int num_fresh) {
  const auto is_cached = [this](int32_t page) { return pages_[page].num_references == 0; };
  const auto revived = std::count_if(shared.begin(), shared.end(), is_cached);
  const auto available = static_cast<int64_t>(free_.size() + cached_.size()) - revived;
  if (num_fresh > available) return std::nullopt;

  for (const int32_t index : shared) {
    Page& page = pages_[index];
    PKV_CHECK(page.header.has_value(), "page ", index, " has no name");
    if (page.num_references++ == 0) cached_.erase(page.cached_at);
  }
  num_shared_ += static_cast<int64_t>(shared.size());

  std::vector<int32_t> fresh;
  fresh.reserve(num_fresh);
  while (static_cast<int>(fresh.size()) < num_fresh) {
    if (free_.empty()) {
      const int32_t evicted = cached_.front();
      cached_.pop_front();
      Forget(pages_[evicted]);
      free_.push_back(evicted);
      ++num_evictions_;
    }
    fresh.push_back(free_.back());
    free_.pop_back();
    pages_[fresh.back()].num_references = 1;
  }
  return fresh;
}

void PagePool::Publish(int32_t index, const ObjectHeader& header) {
  Page& page = pages_[index];
  PKV_CHECK(page.num_references > 0 && !page.header.has_value(), "page ", index, " references ",
            page.num_references);
  PKV_CHECK(
      header.kind == ObjectKind::kBlock && (header.flags & (kFlagAppendsK | kFlagAppendsV)) == 0,
      "flags ", int{header.flags});
  const auto [it, inserted] = by_name_.try_emplace(header.key(), index);
  if (!inserted) {
    Page& other = pages_[it->second];
    if (*other.header == header) return;
    other.header.reset();
    if (other.num_references == 0) {
      cached_.erase(other.cached_at);
      free_.push_back(it->second);
    }
    it->second = index;
  }
  page.header = header;
}

void PagePool::Release(std::span<const int32_t> pages) {
  for (size_t i = pages.size(); i-- > 0;) {
    const int32_t index = pages[i];
    Page& page = pages_[index];
    PKV_CHECK(page.num_references > 0, "page ", index, " is not referenced");
    if (--page.num_references > 0) continue;
    if (page.header.has_value()) {
      page.cached_at = cached_.insert(cached_.end(), index);
    } else {
      free_.push_back(index);
    }
  }
}

PagePool::Counts PagePool::counts() const {
  Counts counts;
  counts.free = static_cast<int>(free_.size());
  counts.cached = static_cast<int>(cached_.size());
  counts.referenced = num_pages() - counts.free - counts.cached;
  return counts;
}

void PagePool::Forget(Page& page) {
  by_name_.erase(page.header->key());
  page.header.reset();
}

}  // namespace pkv
