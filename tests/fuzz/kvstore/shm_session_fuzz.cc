// Goal: whatever two clients of the shm transport say, in whatever order, they pin no more than
// they may, what they pin is in the store, who puts has a stage and pins nothing, and nothing stays
// pinned or lent once they are gone. Method: the input is read as calls, three bytes each; a
// refused message ends its session, as the server would end the connection.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kvstore/service/shm_session.h"
#include "kvstore/store/lru.h"
#include "tests/support/fake_clock.h"
#include "tests/support/sealed_object.h"
#include "tests/support/shm_messages.h"

namespace pkv {
namespace {

constexpr int kNumObjects = 6;  // the last one is never stored

void Require(bool condition) {
  if (!condition) std::abort();
}

struct World {
  World() {
    store = BlockStore::Create({.capacity_bytes = 64 * kArenaUnitBytes,
                                .clock = &clock,
                                .observer = nullptr,
                                .policy = std::make_unique<Lru>()})
                .value();
    for (int i = 0; i < kNumObjects; ++i) objects.push_back(MakeTestWindow(i + 1, i + 1));
    for (int i = 0; i + 1 < kNumObjects; ++i) {
      Reservation reservation = store
                                    ->Reserve({objects[i].key(), objects[i].header.num_layers,
                                               objects[i].header.frame_bytes})
                                    .value();
      for (int layer = 0; layer < objects[i].header.num_layers; ++layer) {
        Require(reservation.Write(layer, 0, objects[i].frame(layer)).ok());
      }
      Require(store->Commit(std::move(reservation), objects[i].head()).ok());
    }
    const uint64_t object_bytes = objects[0].bytes().size();
    shared.store = store.get();
    shared.metrics = &metrics;
    shared.clock = &clock;
    shared.limits.connection_pinned_bytes = 6 * object_bytes;
    shared.limits.total_pinned_bytes = 9 * object_bytes;
    shared.token = std::string(kShmTokenBytes, 't');
    shared.stages = &stages;
  }

  v1::ShmMessage MessageOf(uint8_t kind, uint8_t a, uint8_t b) const {
    switch (kind % 6) {
      case 0:
        if (b % 8 == 0) return ShmPutHelloOf(shared.token);
        return ShmHelloOf(a % 4 == 0 ? std::string("wrong") : shared.token);
      case 1:
      case 2: {
        std::vector<ObjectKey> keys;
        for (int i = 0; i < kNumObjects; ++i) {
          if ((b >> i & 1) != 0) keys.push_back(objects[i].key());
        }
        return ShmPinOf(a % 8, keys);
      }
      case 3:
        return ShmUnpinOf(a % 8);
      case 4:
        return ShmDamagedOf(a % 8, b % 8);
      default:
        return ShmRenewMessage();
    }
  }

  FakeClock clock;
  MetricRegistry registry;
  ServiceMetrics metrics{registry};
  std::vector<SealedObject> objects;
  std::unique_ptr<BlockStore> store;
  ShmStages stages{&clock};
  ShmShared shared;
};

}  // namespace
}  // namespace pkv

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pkv;
  static auto* const world = new World();  // kept: metrics are slow to make
  std::array<std::unique_ptr<ShmSession>, 2> sessions;
  for (auto& session : sessions) session = std::make_unique<ShmSession>(&world->shared);
  for (size_t at = 0; at + 3 <= size; at += 3) {
    std::unique_ptr<ShmSession>& session = sessions[data[at] >> 7];
    const auto answer =
        session->OnMessage(world->MessageOf(data[at] & 0x7f, data[at + 1], data[at + 2]));
    if (!answer.ok()) session = std::make_unique<ShmSession>(&world->shared);
    const ShmLimits& limits = world->shared.limits;
    uint64_t sum = 0;
    for (const auto& each : sessions) {
      Require(each->pinned_bytes() <= limits.connection_pinned_bytes);
      sum += each->pinned_bytes();
    }
    Require(sum == world->shared.pinned_bytes && sum <= limits.total_pinned_bytes);
    Require((sum > 0) == (world->store->stats().pinned_bytes > 0));
    uint64_t stage_bytes = 0;
    for (const auto& each : sessions) {
      if (each->stage() == nullptr) continue;
      stage_bytes += each->stage()->bytes();
      Require(each->pinned_bytes() == 0);
    }
    Require(stage_bytes == world->stages.bytes());
  }
  for (auto& session : sessions) session.reset();
  Require(world->shared.pinned_bytes == 0 && world->store->stats().pinned_bytes == 0);
  Require(world->stages.bytes() == 0);
  // Nobody's report dropped an object that is intact.
  Require(world->store->stats().num_objects == kNumObjects - 1);
  return 0;
}
