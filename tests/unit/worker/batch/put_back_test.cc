#include "worker/batch/put_back.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/batch_fixture.h"

namespace pkv {
namespace {

class PutBackQueueTest : public BatchTest {
 protected:
  // Sealed blocks, and before them the table that they name, of some prompt.
  std::vector<std::unique_ptr<ObjectBuilder>> Objects(uint64_t seed) {
    const BatchRequest request = StoredRequest(Prompt(seed, 300), 1, {.preset = "pkv2"});
    std::vector<std::unique_ptr<ObjectBuilder>> objects;
    for (const ObjectKey& key : request.keys) {
      if (key.kind == ObjectKind::kWindow) continue;
      const std::vector<std::byte> bytes = cache_.Bytes(key);
      ObjectBuilder builder = *ObjectBuilder::Make(*ParseHeader(bytes));
      const std::span<const std::byte> frame =
          std::span(bytes).subspan(FramesOffset(1), builder.frame(0).size());
      std::copy(frame.begin(), frame.end(), builder.frame(0).begin());
      EXPECT_THAT(builder.Seal(), IsOk());
      objects.push_back(std::make_unique<ObjectBuilder>(std::move(builder)));
    }
    cache_.Clear();
    return objects;
  }
};

TEST_F(PutBackQueueTest, StoresTablesAndCountsBlocks) {
  int num_blocks = -1;
  {
    PutBackQueue queue;
    queue.Put(cache_, Objects(1), [&](int count) { num_blocks = count; });
  }
  EXPECT_EQ(num_blocks, 2);
  EXPECT_EQ(cache_.Keys(ObjectKind::kBlock).size(), 2u);
  EXPECT_EQ(cache_.Keys(ObjectKind::kTable).size(), 1u);
}

TEST_F(PutBackQueueTest, CountsWhatTheCacheTook) {
  std::vector<std::unique_ptr<ObjectBuilder>> without_table = Objects(2);
  without_table.erase(without_table.begin());
  int num_blocks = -1, num_refused = -1;
  {
    PutBackQueue queue;
    queue.Put(cache_, std::move(without_table), [&](int count) { num_refused = count; });
    queue.Put(cache_, {}, [&](int count) { num_blocks = count; });
  }
  EXPECT_EQ(num_refused, 0);
  EXPECT_EQ(num_blocks, 0);
}

TEST_F(PutBackQueueTest, TakesNoMoreThanItsLimit) {
  TestGate gate;
  cache_.set_script([&gate](CacheCall call) {
    if (call == CacheCall::kPut) gate.Pass();
    return absl::OkStatus();
  });
  std::vector<std::unique_ptr<ObjectBuilder>> one_too_many = Objects(3);
  int num_done = 0, num_blocks = -1;
  {
    PutBackQueue queue;
    for (int i = 0; i < PutBackQueue::kMaxWaiting; ++i) {
      queue.Put(cache_, {}, [&](int) { ++num_done; });  // on the queue's one thread
    }
    gate.WaitForArrivals(1);
    queue.Put(cache_, std::move(one_too_many), [&](int count) { num_blocks = count; });
    EXPECT_EQ(num_blocks, 0) << "at once";
    gate.Open();
  }
  EXPECT_EQ(num_done, PutBackQueue::kMaxWaiting);
  EXPECT_TRUE(cache_.Keys(ObjectKind::kBlock).empty());
}

}  // namespace
}  // namespace pkv
