#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "pkv/block/object_view.h"
#include "pkv/client/cache_client.h"
#include "pkv/client/cache_cluster.h"
#include "proto/base/status_macros.h"
#include "worker/ctl/commands.h"
#include "worker/ctl/output.h"

namespace pkv {
namespace {

// As the SDK's limit of one object.
constexpr uintmax_t kMaxFileBytes = uintmax_t{1} << 32;

// How an object is named on the command line: KIND ID VARIANT, where VARIANT is name:digest in hex
// as `inspect` prints it.
struct KeyFlags {
  std::string kind = "block", id, variant;
};

const char* KindName(ObjectKind kind) {
  switch (kind) {
    case ObjectKind::kBlock:
      return "block";
    case ObjectKind::kWindow:
      return "window";
    case ObjectKind::kTable:
      return "table";
  }
  return "?";
}

absl::StatusOr<ObjectKey> ParseKey(const KeyFlags& flags) {
  ObjectKey key;
  key.kind = flags.kind == "window"  ? ObjectKind::kWindow
             : flags.kind == "table" ? ObjectKind::kTable
                                     : ObjectKind::kBlock;
  PKV_ASSIGN_OR_RETURN(key.id, Digest::FromHex(flags.id));
  const size_t colon = flags.variant.find(':');
  if (colon == std::string::npos ||
      !absl::SimpleHexAtoi(flags.variant.substr(colon + 1), &key.variant.params_digest)) {
    return absl::InvalidArgumentError(
        absl::StrCat("variant '", flags.variant, "' is not NAME:DIGEST with a hex digest"));
  }
  key.variant.name = flags.variant.substr(0, colon);
  return key;
}

absl::StatusOr<std::vector<std::byte>> ReadObjectFile(const std::string& path) {
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(path, error);  // fails for what is no file
  std::ifstream file(path, std::ios::binary);
  if (error || !file) return absl::NotFoundError(absl::StrCat("cannot read file ", path));
  if (size > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has ", size, " bytes; an object at most ", kMaxFileBytes));
  }
  std::vector<std::byte> bytes(static_cast<size_t>(size));
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!file) return absl::DataLossError(absl::StrCat("cannot read all of ", path));
  return bytes;
}

nlohmann::ordered_json HeaderJson(const ObjectHeader& header) {
  return {{"kind", KindName(header.kind)},
          {"id", header.id.ToHex()},
          {"variant", VariantText(header.variant())},
          {"version", absl::StrCat(header.version_major, ".", header.version_minor)},
          {"object_bytes", header.object_bytes},
          {"frame_bytes", header.frame_bytes},
          {"layers", header.num_layers},
          {"kv_heads", header.num_kv_heads},
          {"head_dim", header.head_dim},
          {"bits_k", header.bits_k},
          {"bits_v", header.bits_v},
          {"k_group_tokens", header.k_group_tokens},
          {"v_group_channels", header.v_group_channels},
          {"first_token", header.first_token},
          {"tokens", header.num_tokens},
          {"sinks", header.num_sinks},
          {"k_fine_tokens", header.k_fine_tokens},
          {"rotated", header.encoding().rotated},
          {"patterns_k", header.num_patterns_k},
          {"patterns_v", header.num_patterns_v},
          {"appends_k", (header.flags & kFlagAppendsK) != 0},
          {"appends_v", (header.flags & kFlagAppendsV) != 0},
          {"profile", header.profile.ToHex()},
          {"parent", header.parent.ToHex()},
          {"table", header.table.ToHex()}};
}

void PrintFields(const nlohmann::ordered_json& fields) {
  for (const auto& [key, value] : fields.items()) {
    std::printf("%-18s %s\n", key.c_str(),
                value.is_string() ? value.get<std::string>().c_str() : value.dump().c_str());
  }
}

absl::Status Inspect(const std::string& path, const GlobalFlags& global) {
  PKV_ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, ReadObjectFile(path));
  PKV_ASSIGN_OR_RETURN(const ObjectView view, ObjectView::Parse(bytes));
  nlohmann::ordered_json document = HeaderJson(view.header());
  nlohmann::ordered_json crcs = nlohmann::ordered_json::array();
  for (int layer = 0; layer < view.header().num_layers; ++layer) {
    crcs.push_back(absl::StrCat(absl::Hex(view.frame_crc32c(layer), absl::kZeroPad8)));
  }
  const absl::Status verified = view.VerifyAll();
  document["frame_crc32c"] = crcs;
  document["verified"] = verified.ok() ? "ok" : verified.ToString();
  if (global.json()) {
    PrintJson(document);
  } else {
    PrintFields(document);
  }
  return verified;
}

absl::Status PutFiles(CacheClient& client, const std::vector<std::string>& paths,
                      const GlobalFlags& global) {
  std::vector<std::vector<std::byte>> files;
  for (const std::string& path : paths) {
    PKV_ASSIGN_OR_RETURN(files.emplace_back(), ReadObjectFile(path));
    // Looked at here first: the message then names the file.
    const absl::StatusOr<ObjectView> view = ObjectView::Parse(files.back());
    if (!view.ok())
      return {view.status().code(), absl::StrCat(path, ": ", view.status().message())};
  }
  const std::vector<std::span<const std::byte>> objects(files.begin(), files.end());
  const std::vector<PutOutcome> outcomes = client.Put(objects);
  nlohmann::ordered_json document = nlohmann::ordered_json::array();
  absl::Status first_error;
  for (size_t i = 0; i < outcomes.size(); ++i) {
    first_error.Update(outcomes[i].status);
    const std::string result = !outcomes[i].status.ok() ? outcomes[i].status.ToString()
                               : outcomes[i].stored     ? "stored"
                                                        : "present";
    document.push_back({{"file", paths[i]}, {"result", result}});
    if (!global.json()) std::printf("%s: %s\n", paths[i].c_str(), result.c_str());
  }
  if (global.json()) PrintJson(document);
  return first_error;
}

absl::Status GetToFile(CacheClient& client, const ObjectKey& key, const std::string& path,
                       const GlobalFlags& global) {
  const ObjectKey keys[] = {key};
  PKV_ASSIGN_OR_RETURN(const std::vector<AlignedBuffer> objects, client.Get(keys));
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(objects[0].data()),
             static_cast<std::streamsize>(objects[0].size()));
  file.close();
  if (!file) return absl::UnavailableError(absl::StrCat("cannot write ", path));
  if (global.json()) {
    PrintJson({{"file", path}, {"bytes", objects[0].size()}});
  } else {
    std::printf("%s: %s\n", path.c_str(), FormatBytes(objects[0].size()).c_str());
  }
  return absl::OkStatus();
}

absl::Status StatObject(CacheClient& client, const ObjectKey& key, const GlobalFlags& global) {
  const ObjectKey keys[] = {key};
  PKV_ASSIGN_OR_RETURN(const std::vector<ObjectStat> stats, client.Stat(keys));
  if (!stats[0].present)
    return absl::NotFoundError(
        absl::StrCat(KindName(key.kind), " ", key.id.ToHex(), " is not stored"));
  PKV_ASSIGN_OR_RETURN(const ObjectHeader header, ParseHeader(stats[0].head));
  nlohmann::ordered_json document = HeaderJson(header);
  document["idle_seconds"] = absl::ToDoubleSeconds(stats[0].idle);
  if (global.json()) {
    PrintJson(document);
  } else {
    PrintFields(document);
  }
  return absl::OkStatus();
}

absl::Status RemoveObject(CacheClient& client, const ObjectKey& key, const GlobalFlags& global) {
  const ObjectKey keys[] = {key};
  PKV_ASSIGN_OR_RETURN(const int deleted, client.Delete(keys));
  if (global.json()) {
    PrintJson({{"deleted", deleted}});
  } else {
    std::printf("%d deleted\n", deleted);
  }
  return deleted > 0 ? absl::OkStatus()
                     : absl::NotFoundError(
                           absl::StrCat(KindName(key.kind), " ", key.id.ToHex(), " is not stored"));
}

nlohmann::ordered_json StatsJson(const std::string& server, const ServerStats& stats) {
  return {{"server", server},
          {"version", stats.version},
          {"capacity_bytes", stats.capacity_bytes},
          {"resident_bytes", stats.resident_bytes},
          {"pinned_bytes", stats.pinned_bytes},
          {"reserved_bytes", stats.reserved_bytes},
          {"objects", stats.num_objects},
          {"evictions", stats.num_evictions},
          {"ssd_capacity_bytes", stats.ssd_capacity_bytes},
          {"ssd_resident_bytes", stats.ssd_resident_bytes},
          {"ssd_objects", stats.ssd_objects},
          {"draining", stats.draining}};
}

// Of every server, also behind one that does not answer, whose error is the result. JSON: of one
// server its document, of several a list.
absl::Status ShowStats(const GlobalFlags& global) {
  ClientOptions options;
  options.address = global.cache;
  PKV_ASSIGN_OR_RETURN(const std::unique_ptr<CacheCluster> cluster, CacheCluster::Create(options));
  const std::vector<ServerStatus> servers = cluster->servers();
  nlohmann::ordered_json documents = nlohmann::ordered_json::array();
  absl::Status first_error;
  for (const ServerStatus& server : servers) {
    ClientOptions one = options;
    one.address = server.address;
    PKV_ASSIGN_OR_RETURN(const std::unique_ptr<CacheClient> client, CacheClient::Create(one));
    const absl::StatusOr<ServerStats> stats = client->Stats();
    if (!stats.ok()) {
      first_error.Update(
          {stats.status().code(), absl::StrCat(server.address, ": ", stats.status().message())});
      continue;
    }
    documents.push_back(StatsJson(server.address, *stats));
    if (global.json()) continue;
    if (documents.size() > 1) std::printf("\n");
    PrintFields(documents.back());
  }
  if (global.json() && !documents.empty()) {
    PrintJson(servers.size() == 1 ? documents.front() : documents);
  }
  return first_error;
}

// Runs `action` with a client for the server of `global`.
template <typename Action>
void WithClient(const GlobalFlags& global, int& exit_code, Action action) {
  ClientOptions options;
  options.address = global.cache;
  const absl::StatusOr<Transport> transport = ParseTransport(global.transport);
  options.transport = transport.value_or(Transport::kAuto);
  const absl::StatusOr<std::unique_ptr<CacheClient>> client = CacheClient::Create(options);
  absl::Status status = transport.status();
  if (status.ok()) status = client.ok() ? action(**client) : client.status();
  if (!status.ok()) exit_code = Fail(status);
}

template <typename Action>
void WithKey(const GlobalFlags& global, const KeyFlags& flags, int& exit_code, Action action) {
  const absl::StatusOr<ObjectKey> key = ParseKey(flags);
  if (!key.ok()) {
    exit_code = Fail(key.status());
    return;
  }
  WithClient(global, exit_code, [&](CacheClient& client) { return action(client, *key); });
}

void AddKeyOptions(CLI::App& command, KeyFlags& flags) {
  command.add_option("--kind", flags.kind)
      ->check(CLI::IsMember({"block", "window", "table"}))
      ->capture_default_str();
  command.add_option("--id", flags.id, "64 hex digits")->required();
  command.add_option("--variant", flags.variant, "NAME:DIGEST, as inspect prints it")->required();
}

}  // namespace

void AddObjectCommands(CLI::App& app, const GlobalFlags& global, int& exit_code) {
  auto files = std::make_shared<std::vector<std::string>>();
  CLI::App* put = app.add_subcommand("put", "store object files");
  put->add_option("files", *files, "files as get writes them")->required();
  put->callback([files, &global, &exit_code] {
    WithClient(global, exit_code,
               [&](CacheClient& client) { return PutFiles(client, *files, global); });
  });

  auto key = std::make_shared<KeyFlags>();
  auto path = std::make_shared<std::string>();
  CLI::App* get = app.add_subcommand("get", "fetch one object into a file");
  AddKeyOptions(*get, *key);
  get->add_option("-o,--out", *path, "file to write")->required();
  get->callback([key, path, &global, &exit_code] {
    WithKey(global, *key, exit_code, [&](CacheClient& client, const ObjectKey& k) {
      return GetToFile(client, k, *path, global);
    });
  });
  CLI::App* stat = app.add_subcommand("stat", "header of one stored object");
  AddKeyOptions(*stat, *key);
  stat->callback([key, &global, &exit_code] {
    WithKey(global, *key, exit_code,
            [&](CacheClient& client, const ObjectKey& k) { return StatObject(client, k, global); });
  });
  CLI::App* rm = app.add_subcommand("rm", "delete one object");
  AddKeyOptions(*rm, *key);
  rm->callback([key, &global, &exit_code] {
    WithKey(global, *key, exit_code, [&](CacheClient& client, const ObjectKey& k) {
      return RemoveObject(client, k, global);
    });
  });
  CLI::App* inspect = app.add_subcommand("inspect", "print and verify an object file");
  inspect->add_option("file", *path)->required();
  inspect->callback([path, &global, &exit_code] {
    const absl::Status status = Inspect(*path, global);
    if (!status.ok()) exit_code = Fail(status);
  });
  CLI::App* stats = app.add_subcommand("stats", "memory and counts of the servers");
  stats->callback([&global, &exit_code] {
    const absl::Status status = ShowStats(global);
    if (!status.ok()) exit_code = Fail(status);
  });
  CLI::App* drain =
      app.add_subcommand("drain", "make the server refuse puts and report NOT_SERVING");
  drain->callback([&global, &exit_code] {
    WithClient(global, exit_code, [](CacheClient& client) { return client.Drain(); });
  });
}

}  // namespace pkv
