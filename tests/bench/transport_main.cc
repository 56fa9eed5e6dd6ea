// pkv-bench-transport: what a get, or with --puts a put, costs over gRPC on loopback and over shm,
// in bytes per second of processor time, user and kernel, client and server together.
//
// A program of its own: pkv-bench runs on machines without gRPC. It starts a real pkvd, stores a
// prompt's blocks and gets them again and again, every frame verified. Reading in place ends where
// attention would begin: no frame is copied. A put is one of all blocks, layer by layer as a
// prefill worker writes them, until the last receipt; what it stored is deleted while no time is
// counted.

#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "pkv/block/object_view.h"
#include "pkv/client/cache_client.h"
#include "proto/base/checksum.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "tests/support/child_process.h"
#include "tests/support/sample_object.h"

namespace pkv {
namespace {

struct Flags {
  std::string pkvd;
  uint64_t bytes = uint64_t{128} << 20;
  int layers = 32, kv_heads = 8, head_dim = 128;
  double seconds = 3;
  int rounds = 3;
  bool puts = false;
  std::string only;  // "grpc" or "shm": to profile one
};

// Processor time of a clock, in seconds.
double SecondsOf(clockid_t clock) {
  timespec time{};
  PKV_CHECK(clock_gettime(clock, &time) == 0);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

struct CpuTimes {
  double client = 0, server = 0, wall = 0;

  static CpuTimes Now(pid_t server) {
    clockid_t server_clock{};
    PKV_CHECK(clock_getcpuclockid(server, &server_clock) == 0);
    return {SecondsOf(CLOCK_PROCESS_CPUTIME_ID), SecondsOf(server_clock),
            SecondsOf(CLOCK_MONOTONIC)};
  }
  CpuTimes operator-(const CpuTimes& o) const {
    return {client - o.client, server - o.server, wall - o.wall};
  }
  CpuTimes& operator+=(const CpuTimes& o) {
    client += o.client;
    server += o.server;
    wall += o.wall;
    return *this;
  }
  double cpu() const { return client + server; }
};

// 2-bit blocks, as preset kivi2-g64 makes them, until there are `flags.bytes` of them.
absl::StatusOr<std::vector<ObjectBuilder>> MakeBlocks(const Flags& flags) {
  SampleBlock block;
  block.shape = {
      .num_layers = flags.layers, .num_kv_heads = flags.kv_heads, .head_dim = flags.head_dim};
  block.encoding = {.bits_k = 2, .bits_v = 2, .k_group_tokens = 64, .v_group_channels = 64};
  std::vector<ObjectBuilder> blocks;
  for (uint64_t bytes = 0; bytes < flags.bytes; bytes += blocks.back().bytes().size()) {
    ObjectHeader header = SampleBlockHeader(block);
    header.id = SampleDigest(absl::StrCat("block ", blocks.size()));
    PKV_ASSIGN_OR_RETURN(ObjectBuilder builder, BuildSample(header, blocks.size()));
    PKV_RETURN_IF_ERROR(builder.Seal());
    blocks.push_back(std::move(builder));
  }
  return blocks;
}

class Server {
 public:
  Server(const Flags& flags, const std::string& scratch)
      : process_({flags.pkvd, "--capacity", std::to_string(3 * flags.bytes), "--listen",
                  "127.0.0.1:0", "--metrics-listen", "", "--port-file", scratch + "/port",
                  "--shm-socket", scratch + "/shm.sock", "--log-level", "warning"},
                 scratch + "/pkvd") {
    for (int i = 0; i < 2000 && !std::filesystem::exists(scratch + "/port"); ++i) usleep(5000);
    std::ifstream(scratch + "/port") >> port_;
  }
  absl::Status started() const {
    return port_.empty() ? absl::UnavailableError(process_.err()) : absl::OkStatus();
  }
  std::string address() const { return "127.0.0.1:" + port_; }
  pid_t pid() const { return process_.pid(); }

 private:
  ChildProcess process_;
  std::string port_;
};

absl::Status GetOnce(CacheClient& client, const std::vector<ObjectKey>& keys) {
  const std::unique_ptr<GetStream> stream = client.StartGet(keys);
  PKV_RETURN_IF_ERROR(stream->WaitForAll());
  return stream->CheckHeld();
}

absl::Status PutOnce(CacheClient& client, const std::vector<ObjectBuilder>& blocks) {
  std::vector<ObjectDescriptor> descriptors;
  for (const ObjectBuilder& block : blocks) {
    const ObjectHeader& header = block.header();
    descriptors.push_back({header.key(), header.num_layers, header.frame_bytes});
  }
  PKV_ASSIGN_OR_RETURN(const std::unique_ptr<PutStream> stream, client.StartPut(descriptors));
  std::vector<std::span<const std::byte>> frames(blocks.size());
  for (int layer = 0; layer < blocks[0].header().num_layers; ++layer) {
    for (size_t i = 0; i < blocks.size(); ++i) frames[i] = blocks[i].frame(layer);
    PKV_RETURN_IF_ERROR(stream->WriteLayer(layer, frames));
  }
  for (size_t i = 0; i < blocks.size(); ++i) {
    PKV_RETURN_IF_ERROR(stream->Commit(static_cast<int>(i), blocks[i].head()));
  }
  for (const PutOutcome& outcome : stream->Finish()) PKV_RETURN_IF_ERROR(outcome.status);
  return absl::OkStatus();
}

struct Row {
  std::string name;
  double bytes = 0;
  CpuTimes spent;

  double bytes_per_cpu_s() const { return bytes / spent.cpu(); }
};

// Of all that was sent or received.
uint64_t PayloadBytes(const CacheClient& client) {
  const ClientCounters counters = client.counters();
  return counters.get_bytes + counters.put_bytes;
}

absl::StatusOr<Row> TimeTransport(Transport transport, const Flags& flags, const Server& server,
                                  const std::vector<ObjectBuilder>& blocks,
                                  const std::vector<ObjectKey>& keys) {
  ClientOptions options;
  options.address = server.address();
  options.transport = transport;
  options.get_deadline = options.put_deadline = absl::Seconds(60);
  PKV_ASSIGN_OR_RETURN(const std::unique_ptr<CacheClient> client, CacheClient::Create(options));
  const auto once = [&]() -> absl::StatusOr<CpuTimes> {
    if (flags.puts) PKV_RETURN_IF_ERROR(client->Delete(keys).status());
    const CpuTimes began = CpuTimes::Now(server.pid());
    PKV_RETURN_IF_ERROR(flags.puts ? PutOnce(*client, blocks) : GetOnce(*client, keys));
    return CpuTimes::Now(server.pid()) - began;
  };
  // Connections, the mapping's page tables, threads.
  PKV_RETURN_IF_ERROR(once().status());
  Row best;
  for (int round = 0; round < flags.rounds; ++round) {
    const uint64_t bytes = PayloadBytes(*client);
    CpuTimes spent;
    while (spent.wall < flags.seconds) {
      PKV_ASSIGN_OR_RETURN(const CpuTimes once_spent, once());
      spent += once_spent;
    }
    Row row{transport == Transport::kGrpc ? "grpc" : "shm",
            static_cast<double>(PayloadBytes(*client) - bytes), spent};
    if (round == 0 || row.bytes_per_cpu_s() > best.bytes_per_cpu_s()) best = row;
  }
  return best;
}

// One pass over all frames on this thread, as GB a second: the part that no transport avoids.
template <typename Pass>
double TimePass(const std::vector<ObjectBuilder>& blocks, double seconds, const Pass& pass) {
  double bytes = 0;
  const double began = SecondsOf(CLOCK_PROCESS_CPUTIME_ID);
  double spent = 0;
  while (spent < seconds) {
    for (const ObjectBuilder& block : blocks) {
      const ObjectView view = ObjectView::Parse(block.bytes()).value();
      for (int layer = 0; layer < view.header().num_layers; ++layer) {
        pass(view, layer);
        bytes += static_cast<double>(view.header().frame_bytes);
      }
    }
    spent = SecondsOf(CLOCK_PROCESS_CPUTIME_ID) - began;
  }
  return bytes / spent / 1e9;
}

void Print(const Row& row) {
  const double gb = row.bytes / 1e9;
  std::printf("%-6s %8.2f GB per CPU-s   wall %6.2f GB/s   ms per GB: client %6.1f, server %6.1f\n",
              row.name.c_str(), row.bytes_per_cpu_s() / 1e9, gb / row.spent.wall,
              1e3 * row.spent.client / gb, 1e3 * row.spent.server / gb);
}

absl::Status Run(const Flags& flags) {
  PKV_ASSIGN_OR_RETURN(const std::vector<ObjectBuilder> blocks, MakeBlocks(flags));
  std::string scratch = "/tmp/pkv-bench-transport-XXXXXX";
  PKV_CHECK(mkdtemp(scratch.data()) != nullptr);
  const std::unique_ptr<std::string, void (*)(std::string*)> cleaner(
      &scratch, [](std::string* path) { std::filesystem::remove_all(*path); });
  const Server server(flags, scratch);
  PKV_RETURN_IF_ERROR(server.started());
  std::vector<ObjectKey> keys;
  {
    ClientOptions options;
    options.address = server.address();
    PKV_ASSIGN_OR_RETURN(const auto client, CacheClient::Create(options));
    for (const ObjectBuilder& block : blocks) {
      const std::span<const std::byte> bytes = block.bytes();
      PKV_RETURN_IF_ERROR(client->Put({&bytes, 1})[0].status);
      keys.push_back(block.header().key());
    }
  }
  std::printf("%zu blocks of %zu bytes: %d layers, %d kv heads of %d, 2 bits\n", blocks.size(),
              blocks[0].bytes().size(), flags.layers, flags.kv_heads, flags.head_dim);
  if (!flags.only.empty()) {
    PKV_ASSIGN_OR_RETURN(const Transport transport, ParseTransport(flags.only));
    PKV_ASSIGN_OR_RETURN(const Row row, TimeTransport(transport, flags, server, blocks, keys));
    Print(row);
    return absl::OkStatus();
  }
  PKV_ASSIGN_OR_RETURN(const Row grpc,
                       TimeTransport(Transport::kGrpc, flags, server, blocks, keys));
  PKV_ASSIGN_OR_RETURN(const Row shm, TimeTransport(Transport::kShm, flags, server, blocks, keys));
  Print(grpc);
  Print(shm);
  std::printf("shm over grpc: %.2f times the bytes per CPU-s\n",
              shm.bytes_per_cpu_s() / grpc.bytes_per_cpu_s());
  if (flags.puts) return absl::OkStatus();
  volatile uint32_t sink = 0;
  const double crc = TimePass(blocks, flags.seconds, [&](const ObjectView& view, int layer) {
    sink = sink + Crc32c(view.frame(layer));
  });
  const double numbers = TimePass(blocks, flags.seconds, [&](const ObjectView& view, int layer) {
    sink = sink + (CheckFrameNumbers(view.header(), layer, view.frame(layer)).ok() ? 1 : 0);
  });
  std::printf("one thread: CRC-32C %.2f GB/s, stored numbers %.2f GB/s\n", crc, numbers);
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Cost of a get or put over gRPC on loopback and over shm", "pkv-bench-transport");
  flags.pkvd =
      (std::filesystem::path(argv[0]).parent_path() / "../../kvstore/pkvd").lexically_normal();
  app.add_option("--pkvd", flags.pkvd, "binary to start")->capture_default_str();
  app.add_flag("--puts", flags.puts, "time puts");
  app.add_option("--bytes", flags.bytes, "of blocks, got or put together")
      ->transform(CLI::AsSizeValue(false))
      ->default_str("128MiB");
  app.add_option("--layers", flags.layers)->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--kv-heads", flags.kv_heads)->check(CLI::Range(1, 256))->capture_default_str();
  app.add_option("--head-dim", flags.head_dim)->check(CLI::IsMember({64, 128}));
  app.add_option("--seconds", flags.seconds, "of a round")->capture_default_str();
  app.add_option("--rounds", flags.rounds, "the best one counts")->capture_default_str();
  app.add_option("--only", flags.only, "time one of them")->check(CLI::IsMember({"grpc", "shm"}));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  ConfigureLog(LogLevel::kWarning, LogFormat::kText);
  const absl::Status status = Run(flags);
  if (status.ok()) return 0;
  std::fprintf(stderr, "pkv-bench-transport: %s\n", status.ToString().c_str());
  return 1;
}

}  // namespace
}  // namespace pkv

int main(int argc, char** argv) { return pkv::Main(argc, argv); }
