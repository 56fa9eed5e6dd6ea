// pkv-bench-ssd: what the disk under a pkvd costs and gives: writing memory out, starting with what
// is there, bringing blocks in, and lookups over a large index. The store's own code, without gRPC.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvstore/disk/posix_disk.h"
#include "kvstore/store/demoter.h"
#include "kvstore/store/lru.h"
#include "kvstore/store/pager.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "tests/support/sample_object.h"

namespace pkv {
namespace {

struct Flags {
  std::string folder;
  uint64_t bytes = uint64_t{1} << 30;
  int layers = 32, kv_heads = 8, head_dim = 128;
  int fetch_blocks = 32;  // brought in at a time
  uint64_t index_objects = 1000000;
};

double Seconds(absl::Time since) {
  return absl::ToDoubleSeconds(Clock::Real()->MonotonicNow() - since);
}

ObjectKey KeyOf(uint64_t number) {
  return {ObjectKind::kBlock, SampleDigest(absl::StrCat("block ", number)), {"sample", 1}};
}

struct Tiers {
  std::unique_ptr<Disk> disk;
  std::unique_ptr<SegmentLog> log;
  std::unique_ptr<BlockStore> store;
};

absl::StatusOr<Tiers> Open(const Flags& flags, uint64_t capacity_bytes) {
  Tiers tiers;
  PKV_ASSIGN_OR_RETURN(tiers.disk, OpenPosixDisk(flags.folder));
  PKV_ASSIGN_OR_RETURN(tiers.log, SegmentLog::Open({.disk = tiers.disk.get(),
                                                    .capacity_bytes = capacity_bytes,
                                                    .salt = 1,
                                                    .clock = Clock::Real()}));
  PKV_ASSIGN_OR_RETURN(tiers.store,
                       BlockStore::Create({.capacity_bytes = flags.bytes + (flags.bytes >> 3),
                                           .clock = Clock::Real(),
                                           .policy = std::make_unique<Lru>(),
                                           .log = tiers.log.get()}));
  return tiers;
}

// 2-bit blocks, as preset kivi2-g64 makes them, until there are `flags.bytes` of them.
absl::StatusOr<std::vector<ObjectKey>> PutBlocks(const Flags& flags, BlockStore& store) {
  SampleBlock block;
  block.shape = {
      .num_layers = flags.layers, .num_kv_heads = flags.kv_heads, .head_dim = flags.head_dim};
  block.encoding = {.bits_k = 2, .bits_v = 2, .k_group_tokens = 64, .v_group_channels = 64};
  std::vector<ObjectKey> keys;
  for (uint64_t bytes = 0; bytes < flags.bytes;) {
    ObjectHeader header = SampleBlockHeader(block);
    header.id = SampleDigest(absl::StrCat("block ", keys.size()));
    PKV_ASSIGN_OR_RETURN(ObjectBuilder builder, BuildSample(header, keys.size()));
    PKV_RETURN_IF_ERROR(builder.Seal());
    const ObjectHeader& sealed = builder.header();
    PKV_ASSIGN_OR_RETURN(Reservation reservation,
                         store.Reserve({sealed.key(), sealed.num_layers, sealed.frame_bytes}));
    for (int layer = 0; layer < sealed.num_layers; ++layer) {
      PKV_RETURN_IF_ERROR(reservation.Write(layer, 0, builder.frame(layer)));
    }
    const auto head = builder.bytes().first(FramesOffset(sealed.num_layers));
    PKV_RETURN_IF_ERROR(store.Commit(std::move(reservation), head).status());
    keys.push_back(sealed.key());
    bytes += sealed.object_bytes;
  }
  return keys;
}

absl::Status TimeBlocks(const Flags& flags) {
  const uint64_t capacity_bytes = 2 * flags.bytes + (uint64_t{64} << 20);
  std::vector<ObjectKey> keys;
  {
    PKV_ASSIGN_OR_RETURN(const Tiers tiers, Open(flags, capacity_bytes));
    PKV_ASSIGN_OR_RETURN(keys, PutBlocks(flags, *tiers.store));
    const double gb = 1e-9 * static_cast<double>(tiers.store->stats().resident_bytes);
    std::printf("%zu blocks of %.2f MB: %d layers, %d kv heads of %d, 2 bits\n", keys.size(),
                1e3 * gb / static_cast<double>(keys.size()), flags.layers, flags.kv_heads,
                flags.head_dim);
    Demoter demoter({.store = tiers.store.get(), .log = tiers.log.get(), .clock = Clock::Real()});
    const absl::Time begin = Clock::Real()->MonotonicNow();
    demoter.WriteAll(absl::InfiniteFuture());
    std::printf("write  %6.2f GB/s: checked, written, synced, on one thread\n",
                gb / Seconds(begin));
  }
  const absl::Time begin = Clock::Real()->MonotonicNow();
  PKV_ASSIGN_OR_RETURN(const Tiers tiers, Open(flags, capacity_bytes));
  std::printf("open   %6.3f s: %lu blocks\n", Seconds(begin),
              static_cast<unsigned long>(tiers.log->stats().num_objects));
  Pager pager({.store = tiers.store.get(), .log = tiers.log.get(), .clock = Clock::Real()});
  const absl::Time first = Clock::Real()->MonotonicNow();
  size_t num_paged_in = 0;
  for (size_t i = 0; i < keys.size(); i += static_cast<size_t>(flags.fetch_blocks)) {
    const size_t count = std::min(keys.size() - i, static_cast<size_t>(flags.fetch_blocks));
    num_paged_in += static_cast<size_t>(
        pager.FetchAndWait(std::span(keys).subspan(i, count), absl::Minutes(1)).num_paged_in);
  }
  const double gb = 1e-9 * static_cast<double>(tiers.store->stats().resident_bytes);
  std::printf(
      "read   %6.2f GB/s: read and checked, %d at a time on four threads, %zu of %zu came\n",
      gb / Seconds(first), flags.fetch_blocks, num_paged_in, keys.size());
  return absl::OkStatus();
}

// Nothing of this is on the disk: lookups ask the index alone.
absl::Status TimeLookups(const Flags& flags) {
  PKV_ASSIGN_OR_RETURN(const Tiers tiers, Open(flags, uint64_t{64} << 20));
  for (uint64_t i = 0; i < flags.index_objects; ++i) {
    tiers.log->Publish(KeyOf(i), {.segment = i / 1024, .offset = 4096, .object_bytes = 1});
  }
  std::vector<Digest> ids;
  for (uint64_t i = 0; i < 4096; ++i) ids.push_back(KeyOf(i).id);
  const Variant variants[] = {KeyOf(0).variant};
  double best = 1e9;
  for (int round = 0; round < 20; ++round) {
    const absl::Time begin = Clock::Real()->MonotonicNow();
    const PrefixMatch match = tiers.store->LongestPrefix(ids, variants);
    best = std::min(best, Seconds(begin));
    PKV_CHECK(match.num_blocks > 0);
  }
  std::printf("lookup %6.1f us: 4,096 blocks on disk alone, %lu in the index\n", 1e6 * best,
              static_cast<unsigned long>(flags.index_objects));
  return absl::OkStatus();
}

// Many small records: what opening costs for each.
absl::Status TimeOpen(const Flags& flags, int num_records) {
  const uint64_t capacity_bytes =
      static_cast<uint64_t>(num_records) * 4 * kDiskUnitBytes + (uint64_t{64} << 20);
  {
    PKV_ASSIGN_OR_RETURN(const Tiers tiers, Open(flags, capacity_bytes));
    DiskBuffer unit(kDiskUnitBytes);
    LogRecord record{.num_layers = 1};
    record.frame_bytes = 128;
    record.object_bytes = FramesOffset(1) + 128;
    for (int i = 0; i < num_records; ++i) {
      PKV_RETURN_IF_ERROR(tiers.log->Append(KeyOf(i), record, unit.span()).status());
    }
    PKV_RETURN_IF_ERROR(tiers.log->Sync());
  }
  const absl::Time begin = Clock::Real()->MonotonicNow();
  PKV_ASSIGN_OR_RETURN(const Tiers tiers, Open(flags, capacity_bytes));
  std::printf("open   %6.3f s: %d small objects in %lu segments\n", Seconds(begin), num_records,
              static_cast<unsigned long>(tiers.log->stats().num_segments));
  return absl::OkStatus();
}

absl::Status Run(Flags flags) {
  const std::string parent = flags.folder;
  const auto run_in = [&flags, &parent](const char* name, const auto& measure) {
    flags.folder = absl::StrCat(parent, "/", name);
    const absl::Status status = measure();
    std::filesystem::remove_all(flags.folder);
    return status;
  };
  std::filesystem::create_directories(parent);
  PKV_RETURN_IF_ERROR(run_in("blocks", [&flags] { return TimeBlocks(flags); }));
  const int num_records = static_cast<int>(std::min<uint64_t>(flags.index_objects / 20, 100000));
  PKV_RETURN_IF_ERROR(run_in("open", [&] { return TimeOpen(flags, num_records); }));
  return run_in("lookup", [&flags] { return TimeLookups(flags); });
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("What the disk under a pkvd costs and gives", "pkv-bench-ssd");
  app.add_option("folder", flags.folder, "on the disk; folders are made in it, and removed")
      ->required();
  app.add_option("--bytes", flags.bytes, "of blocks")
      ->transform(CLI::AsSizeValue(false))
      ->default_str("1GiB");
  app.add_option("--layers", flags.layers)->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--kv-heads", flags.kv_heads)->check(CLI::Range(1, 256))->capture_default_str();
  app.add_option("--fetch-blocks", flags.fetch_blocks)->check(CLI::Range(1, 4096));
  app.add_option("--index", flags.index_objects, "objects in the index of the lookups")
      ->check(CLI::Range(uint64_t{4096}, uint64_t{1} << 30))
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  ConfigureLog(LogLevel::kWarning, LogFormat::kText);
  const absl::Status status = Run(flags);
  if (status.ok()) return 0;
  std::fprintf(stderr, "pkv-bench-ssd: %s\n", status.ToString().c_str());
  return 1;
}

}  // namespace
}  // namespace pkv

int main(int argc, char** argv) { return pkv::Main(argc, argv); }
