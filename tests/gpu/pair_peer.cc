// One end of an NCCL pair, told by pair.py what to do.
//
//   pair_peer --control FD --device N
//
// FD is a SOCK_SEQPACKET socket. First goes out "ready devices=D nccl=V page_bytes=B". A message in
// is a command, and each but `gone` has one answer, "ok ..." or "error CODE: MESSAGE":
//
//   id                             a fresh unique id, in hexadecimal
//   limit COPY_CTAS DIGEST_CTAS COMM_CTAS    for pairs opened from now on; 0: none
//   open ID RANK GROUP_BYTES MS    opens a pair, bound MS
//   send TIMES STALL_MS REST_MS    the prefix TIMES times, 0: until an error; seconds of each
//   receive TIMES STALL_MS REST_MS    the same, every span compared; and seconds to layer 0
//   posts                          seconds that NCCL took to post each operation since the last
//                                  time: the median, the most
//   close
//   gone                           the control connection says that the peer is gone
//   fill | clear | corrupt LAYER BLOCK | wrong
//   bare ID RANK whole|layers|pages TIMES REST_MS
//   digest ITEM_BYTES TIMES | scatter ITEM_BYTES TIMES | copy TIMES
//                                  GB/s of the kernels over all pages, read once each
//   exit
#include <cuda_runtime_api.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "proto/base/status_macros.h"
#include "proto/base/sync.h"
#include "proto/transport/nccl/nccl_pair.h"
#include "proto/transport/nccl/span_kernels.h"
#include "tests/gpu/bare_pair.h"
#include "tests/gpu/pair_pages.h"
#include "tests/gpu/timed_pair_calls.h"

namespace pkv {
namespace {

using SteadyClock = std::chrono::steady_clock;

double SecondsSince(SteadyClock::time_point begin) {
  return std::chrono::duration<double>(SteadyClock::now() - begin).count();
}

NcclUniqueId IdOf(const std::string& hex) {
  const std::string bytes = absl::HexStringToBytes(hex);
  NcclUniqueId id;
  PKV_CHECK(bytes.size() == id.bytes.size(), bytes.size());
  std::memcpy(id.bytes.data(), bytes.data(), bytes.size());
  return id;
}

// Bandwidth of the kernels that NcclPair runs, over all pages of the pool.
class KernelTiming {
 public:
  explicit KernelTiming(const PairPages& pages) : pages_(pages) {
    CheckCuda(cudaEventCreate(&begin_), "make an event");
    CheckCuda(cudaEventCreate(&end_), "make an event");
  }

  // `scatters`: and copies each page, in the order of the pages.
  double DigestGbPerS(uint64_t item_bytes, bool scatters, int times) {
    auto* const copies = scatters ? AllocateOnDevice<std::byte>(pages_.total_bytes()) : nullptr;
    DigestItemCutter cutter(item_bytes);
    std::vector<DigestItem> items;
    std::vector<uint32_t> seeds;
    for (const DeviceSpan& span : pages_.spans()) {
      const auto index = static_cast<uint32_t>(seeds.size());
      cutter.AppendPart(span, 0, scatters ? copies + index * span.bytes : nullptr, index, items);
      seeds.push_back(cutter.SeedOf(span.bytes));
    }
    auto* device_items = OnDevice(items);
    auto* digests = OnDevice(seeds);
    const auto launch = [&] {
      CheckCuda(
          LaunchDigestItems(device_items, static_cast<uint32_t>(items.size()), digests, 0, nullptr),
          "take digests");
    };
    launch();
    std::vector<uint32_t> got(seeds.size());
    CheckCuda(cudaMemcpy(got.data(), digests, 4 * got.size(), cudaMemcpyDeviceToHost), "read");
    PKV_CHECK(got == pages_.checksums(), "digests differ from the host's");
    const double seconds = SecondsOf(launch, times);
    Free(device_items, digests);
    CheckCuda(cudaFree(copies), "free");
    return static_cast<double>(pages_.total_bytes()) / seconds * 1e-9;
  }

  double CopyGbPerS(int times) {
    auto* const staging = AllocateOnDevice<std::byte>(pages_.total_bytes());
    std::vector<CopyItem> items;
    std::byte* to = staging;
    for (const DeviceSpan& span : pages_.spans()) {
      for (uint64_t at = 0; at < span.bytes; at += kCopyItemBytes) {
        const uint64_t bytes = std::min(span.bytes - at, kCopyItemBytes);
        items.push_back({span.data + at, to, bytes});
        to += bytes;
      }
    }
    auto* device_items = OnDevice(items);
    const double seconds = SecondsOf(
        [&] {
          CheckCuda(LaunchCopyItems(device_items, static_cast<uint32_t>(items.size()), 0, nullptr),
                    "copy");
        },
        times);
    Free(device_items, staging);
    return static_cast<double>(pages_.total_bytes()) / seconds * 1e-9;
  }

 private:
  template <typename T>
  T* OnDevice(const std::vector<T>& values) {
    T* const data = AllocateOnDevice<T>(values.size());
    CheckCuda(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
              "copy to the device");
    return data;
  }
  static void Free(void* a, void* b) {
    CheckCuda(cudaFree(a), "free");
    CheckCuda(cudaFree(b), "free");
  }
  template <typename Launch>
  double SecondsOf(const Launch& launch, int times) {
    launch();
    CheckCuda(cudaEventRecord(begin_, nullptr), "record");
    for (int i = 0; i < times; ++i) launch();
    CheckCuda(cudaEventRecord(end_, nullptr), "record");
    CheckCuda(cudaEventSynchronize(end_), "wait");
    float ms = 0;
    CheckCuda(cudaEventElapsedTime(&ms, begin_, end_), "time");
    return ms * 1e-3 / times;
  }

  const PairPages& pages_;
  cudaEvent_t begin_, end_;
};

class Peer {
 public:
  Peer(int control, int device) : control_(control), device_(device) {}

  int Run() {
    int num_devices = 0;
    if (cudaGetDeviceCount(&num_devices) != cudaSuccess) num_devices = 0;
    if (device_ >= num_devices) {
      Answer(absl::StrCat("ready devices=", num_devices));
      return 0;
    }
    CheckCuda(cudaSetDevice(device_), "take the device");
    auto calls = MakePairCalls(device_);
    PKV_CHECK(calls.ok(), calls.status().ToString());
    calls_ = std::make_shared<TimedPairCalls>(*std::move(calls));
    pages_ = std::make_unique<PairPages>(static_cast<uint32_t>(device_) + 1);
    pages_->Fill();
    Answer(absl::StrCat("ready devices=", num_devices, " nccl=", NcclVersion(),
                        " page_bytes=", pages_->page_bytes()));
    // One command at a time on a thread, so that `gone` is heard meanwhile.
    std::thread worker;
    for (std::string command; Read(command);) {
      if (command == "gone") {
        Gone();
        continue;
      }
      if (worker.joinable()) worker.join();
      if (command == "exit") {
        Answer("ok");
        return 0;
      }
      worker = std::thread([this, command] {
        CheckCuda(cudaSetDevice(device_), "take the device");
        const absl::StatusOr<std::string> answer = Do(command);
        Answer(answer.ok() ? absl::StrCat("ok ", *answer)
                           : absl::StrCat("error ", answer.status().ToString()));
      });
    }
    _exit(1);  // pair.py is gone
  }

 private:
  bool Read(std::string& command) {
    char buffer[4096];
    const ssize_t size = recv(control_, buffer, sizeof(buffer), 0);
    if (size <= 0) return false;
    command.assign(buffer, static_cast<size_t>(size));
    return true;
  }
  void Answer(const std::string& text) {
    static_cast<void>(send(control_, text.data(), text.size(), MSG_NOSIGNAL));
  }

  std::shared_ptr<NcclPair> pair() {
    MutexLock lock(&mu_);
    return pair_;
  }
  void Gone() {
    if (const auto open = pair()) open->PeerGone("its control connection broke");
  }

  absl::StatusOr<std::string> Do(const std::string& command) {
    std::istringstream words(command);
    std::string name, id, mode;
    uint64_t a = 0, b = 0, c = 0;
    words >> name;
    if (name == "id") {
      PKV_ASSIGN_OR_RETURN(const NcclUniqueId made, calls_->MakeUniqueId());
      return absl::BytesToHexString(
          absl::string_view(reinterpret_cast<const char*>(made.bytes.data()), made.bytes.size()));
    }
    if (name == "limit") {
      words >> a >> b >> c;
      PKV_ASSIGN_OR_RETURN(auto calls,
                           MakePairCalls(device_, {.comm_ctas = static_cast<int>(c),
                                                   .copy_ctas = static_cast<int>(a),
                                                   .digest_ctas = static_cast<int>(b)}));
      calls_ = std::make_shared<TimedPairCalls>(std::move(calls));
      return "";
    }
    if (name == "open") {
      words >> id >> a >> b >> c;
      return Open(IdOf(id), static_cast<int>(a), b, absl::Milliseconds(c));
    }
    if (name == "send" || name == "receive") {
      words >> a >> b >> c;
      return Transfer(name == "send", static_cast<int>(a), absl::Milliseconds(b),
                      std::chrono::milliseconds(c));
    }
    if (name == "posts") {
      std::vector<double> seconds = calls_->TakePostSeconds();
      if (seconds.empty()) return "0 0";
      std::sort(seconds.begin(), seconds.end());
      return Seconds({seconds[seconds.size() / 2], seconds.back()});
    }
    if (name == "close") {
      PKV_RETURN_IF_ERROR(pair()->Close());
      return "";
    }
    if (name == "bare") {
      words >> id >> a >> mode >> b >> c;
      const BareMode bare = mode == "whole"    ? BareMode::kWhole
                            : mode == "layers" ? BareMode::kLayers
                                               : BareMode::kPages;
      return Seconds(TimeBarePair(IdOf(id), static_cast<int>(a), bare, static_cast<int>(b),
                                  std::chrono::milliseconds(c), *pages_));
    }
    words >> a >> b;
    return OfPages(name, a, b);
  }

  absl::StatusOr<std::string> OfPages(const std::string& name, uint64_t a, uint64_t b) {
    if (name == "digest" || name == "scatter") {
      return absl::StrFormat(
          "%.1f", KernelTiming(*pages_).DigestGbPerS(a, name == "scatter", static_cast<int>(b)));
    }
    if (name == "copy") {
      return absl::StrFormat("%.1f", KernelTiming(*pages_).CopyGbPerS(static_cast<int>(a)));
    }
    if (name == "fill") {
      pages_->Fill();
    } else if (name == "clear") {
      pages_->Clear();
    } else if (name == "corrupt") {
      pages_->Corrupt(static_cast<int>(a), static_cast<int>(b));
    } else if (name == "wrong") {
      return absl::StrCat(pages_->NumWrong());
    } else {
      return absl::InvalidArgumentError(absl::StrCat("no command '", name, "'"));
    }
    return "";
  }

  absl::StatusOr<std::string> Open(const NcclUniqueId& id, int rank, uint64_t group_bytes,
                                   absl::Duration timeout) {
    const NcclPairOptions options = {.group_bytes = group_bytes, .open_timeout = timeout};
    auto fresh = std::make_shared<NcclPair>(calls_, options, Clock::Real());
    {
      MutexLock lock(&mu_);
      std::swap(pair_, fresh);  // the last one is destroyed outside the lock
    }
    fresh.reset();
    const auto begin = SteadyClock::now();
    PKV_RETURN_IF_ERROR(pair()->Open(id, rank));
    return absl::StrFormat("%.4f", SecondsSince(begin));
  }

  absl::StatusOr<std::string> Transfer(bool is_send, int times, absl::Duration stall,
                                       std::chrono::milliseconds rest) {
    const TransferLimits limits = {.stall_timeout = stall};
    const std::vector<LayerSpans> layers = pages_->Layers(!is_send);
    const std::shared_ptr<NcclPair> open = pair();
    std::vector<double> seconds;
    double layer_0 = 0;
    for (int i = 0; times == 0 || i < times; ++i) {
      Rest(rest);
      const auto begin = SteadyClock::now();
      const auto layer_done = [&](size_t layer, const absl::Status&) {
        if (layer == 0) layer_0 = SecondsSince(begin);
      };
      PKV_RETURN_IF_ERROR(is_send ? open->Send(layers, limits)
                                  : open->Receive(layers, limits, layer_done));
      seconds.push_back(SecondsSince(begin));
    }
    return absl::StrFormat("%s layer_0 %.6f", Seconds(seconds), layer_0);
  }

  static std::string Seconds(const std::vector<double>& seconds) {
    return absl::StrJoin(seconds, " ", [](std::string* out, double value) {
      absl::StrAppendFormat(out, "%.6f", value);
    });
  }

  const int control_;
  const int device_;
  std::shared_ptr<TimedPairCalls> calls_;
  std::unique_ptr<PairPages> pages_;
  Mutex mu_;
  std::shared_ptr<NcclPair> pair_ ABSL_GUARDED_BY(mu_);  // by the command in progress and `gone`
};

}  // namespace
}  // namespace pkv

int main(int argc, char** argv) {
  int control = -1, device = -1;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::string(argv[i]) == "--control") control = std::stoi(argv[i + 1]);
    if (std::string(argv[i]) == "--device") device = std::stoi(argv[i + 1]);
  }
  if (control < 0 || device < 0) {
    std::fprintf(stderr, "pair_peer --control FD --device N\n");
    return 2;
  }
  return pkv::Peer(control, device).Run();
}
