#include "tests/bench/attention_section.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/device/cuda_status.h"
#include "kernels/device/device_buffer.h"
#include "proto/base/float16.h"
#include "proto/base/status_macros.h"
#include "tests/bench/gpu_timing.h"
#include "tests/bench/page_reference.h"

namespace pkv {
namespace {

constexpr int kWindows = 4;  // distinct windows; requests share their content
constexpr int kElementBytes = 2;

uint16_t RoundToBfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
uint16_t Round(float value, QueryType type) {
  return type == QueryType::kFloat16 ? FloatToFloat16(value) : RoundToBfloat16(value);
}
double Widen(uint16_t bits, QueryType type) {
  if (type == QueryType::kFloat16) return Float16ToFloat(bits);
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

std::vector<int32_t> Shuffled(int count, uint64_t seed) {
  std::vector<int32_t> values(count);
  std::iota(values.begin(), values.end(), 0);
  std::mt19937_64 engine(seed);
  std::shuffle(values.begin(), values.end(), engine);
  return values;
}

// The pages of each request of one copy, in random order over its pool.
struct BlockTable {
  int num_pages = 0, stride = 0;
  std::vector<int32_t> pages;  // [batch][stride]; what stands past a request's blocks is unread

  int page(int request, int block) const { return pages[size_t(request) * stride + block]; }
};

BlockTable MakeBlockTable(const std::vector<RequestLength>& lengths, uint64_t seed) {
  BlockTable table;
  for (const RequestLength& length : lengths) {
    table.num_pages += length.num_blocks;
    table.stride = std::max(table.stride, length.num_blocks);
  }
  const std::vector<int32_t> order = Shuffled(table.num_pages, seed);
  table.pages.resize(std::max<size_t>(1, lengths.size() * table.stride));
  size_t next = 0;
  for (size_t r = 0; r < lengths.size(); ++r) {
    for (int i = 0; i < lengths[r].num_blocks; ++i) {
      table.pages[r * table.stride + i] = order[next++];
    }
  }
  return table;
}

// Equal items one after another in device memory, each a copy of one of a few.
class ItemPool {
 public:
  // items[i % items.size()] becomes item i of `count`. All have the first one's size, rounded up to
  // `alignment`.
  static absl::StatusOr<ItemPool> Make(const std::vector<std::span<const std::byte>>& items,
                                       int count, void* stream) {
    ItemPool pool;
    pool.stream_ = stream;
    if (items.empty() || count == 0) {
      PKV_ASSIGN_OR_RETURN(pool.buffer_, DeviceBuffer::Make(kFrameAlignment, stream));
      return pool;
    }
    pool.item_bytes_ = items[0].size();
    pool.stride_ = (pool.item_bytes_ + kFrameAlignment - 1) / kFrameAlignment * kFrameAlignment;
    PKV_ASSIGN_OR_RETURN(pool.buffer_, DeviceBuffer::Make(count * pool.stride_, stream));
    const int num_distinct = std::min(count, static_cast<int>(items.size()));
    for (int i = 0; i < num_distinct; ++i) PKV_RETURN_IF_ERROR(pool.Put(i, items[i]));
    // The items so far, again and again; each time twice as many.
    for (int done = num_distinct; done < count;) {
      const int more = std::min(done, count - done);
      PKV_RETURN_IF_ERROR(
          CudaStatus(cudaMemcpyAsync(pool.buffer_.data() + done * pool.stride_, pool.buffer_.data(),
                                     more * pool.stride_, cudaMemcpyDeviceToDevice,
                                     static_cast<cudaStream_t>(stream)),
                     "repeat the blocks of the sample"));
      done += more;
    }
    return pool;
  }
  absl::Status Put(int index, std::span<const std::byte> item) {
    return CudaStatus(cudaMemcpyAsync(buffer_.data() + index * stride_, item.data(), item.size(),
                                      cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream_)),
                      "copy the blocks of the sample");
  }

  const std::byte* data() const { return buffer_.data(); }
  std::byte* data() { return buffer_.data(); }
  int64_t stride() const { return static_cast<int64_t>(stride_); }

 private:
  DeviceBuffer buffer_;
  void* stream_ = nullptr;
  size_t item_bytes_ = 0, stride_ = kFrameAlignment;
};

// What all copies hold, on the host.
struct HostInputs {
  std::vector<int32_t> slots;  // [batch]: a request's window, sinks and bank in their pools
  std::vector<int32_t> num_blocks, num_window_tokens;  // [batch]; without the newest token
  std::vector<int32_t> num_patterns;                   // [batch][K, V]
  std::vector<std::vector<uint16_t>> windows;          // [kWindows][K, V][kv_head][token][head_dim]
  std::vector<uint16_t> newest_k, newest_v;            // [batch][kv_head][head_dim]
  std::vector<uint16_t> q;                             // [batch][qo_head][head_dim], as rounded
  std::vector<uint16_t> bank;                          // [K, V][kv_head][pattern][head_dim]
  int bank_capacity = 0;
};

std::span<const std::byte> Bytes(const std::vector<uint16_t>& values) {
  return std::as_bytes(std::span(values));
}

// Rows of the window that request `r` shares with others.
const uint16_t* WindowRow(const HostInputs& host, const AttentionCase& c, int capacity, int r,
                          bool is_v, int kv_head, int token) {
  const int64_t row = (int64_t{is_v ? c.num_kv_heads : 0} + kv_head) * capacity + token;
  return host.windows[host.slots[r] % kWindows].data() + row * c.head_dim;
}

HostInputs MakeHostInputs(const AttentionCase& c, const SampleKv& kv, const EncodedSample& sample,
                          const std::vector<RequestLength>& lengths,
                          const AttentionTiming& timing) {
  HostInputs host;
  host.slots = Shuffled(c.batch, timing.seed);
  const KvTensorView tokens = kv.kv.view();
  for (int w = 0; w < kWindows; ++w) {
    std::vector<uint16_t>& window = host.windows.emplace_back();
    for (const bool is_v : {false, true}) {
      for (int h = 0; h < c.num_kv_heads; ++h) {
        for (int t = 0; t < timing.window_tokens; ++t) {
          const int from = (w * timing.window_tokens + t) % tokens.num_tokens;
          const uint16_t* row = is_v ? tokens.v_row(h, from) : tokens.k_row(h, from);
          window.insert(window.end(), row, row + c.head_dim);
        }
      }
    }
  }
  for (int r = 0; r < c.batch; ++r) {
    const int last = lengths[r].num_window_tokens - 1;
    host.num_blocks.push_back(lengths[r].num_blocks);
    host.num_window_tokens.push_back(last);
    host.num_patterns.push_back(sample.bank.num_k());
    host.num_patterns.push_back(sample.bank.num_v());
    for (int h = 0; h < c.num_kv_heads; ++h) {
      const uint16_t* k = WindowRow(host, c, timing.window_tokens, r, false, h, last);
      const uint16_t* v = WindowRow(host, c, timing.window_tokens, r, true, h, last);
      host.newest_k.insert(host.newest_k.end(), k, k + c.head_dim);
      host.newest_v.insert(host.newest_v.end(), v, v + c.head_dim);
    }
    for (int h = 0; h < c.num_qo_heads; ++h) {
      const float* q = kv.query(r, h);
      for (int j = 0; j < c.head_dim; ++j) host.q.push_back(Round(q[j], timing.query_type));
    }
  }
  host.bank_capacity = std::max(sample.bank.num_k(), sample.bank.num_v());
  if (!sample.params.encoding.has_patterns) return host;
  for (const bool is_v : {false, true}) {
    for (int h = 0; h < c.num_kv_heads; ++h) {
      const std::span<const uint16_t> patterns = is_v ? sample.bank.v(h) : sample.bank.k(h);
      const size_t end = host.bank.size() + size_t(host.bank_capacity) * c.head_dim;
      host.bank.insert(host.bank.end(), patterns.begin(), patterns.end());
      host.bank.resize(end);
    }
  }
  return host;
}

// Everything one launch reads and writes, on the device, and its arguments.
struct LaunchBuffers {
  BlockTable table;
  ItemPool pages, windows, banks, sinks;
  std::vector<DeviceBuffer> arrays;
  DeviceBuffer out;
  DecodeAttentionArgs args;
};

template <typename T>
absl::StatusOr<T*> Upload(const std::vector<T>& values, void* stream, LaunchBuffers& buffers) {
  PKV_ASSIGN_OR_RETURN(DeviceBuffer buffer,
                       DeviceBuffer::CopyOf(std::as_bytes(std::span(values)), stream));
  buffers.arrays.push_back(std::move(buffer));
  return buffers.arrays.back().As<T>();
}

std::vector<std::span<const std::byte>> PagesOf(const std::vector<EncodedBlock>& blocks,
                                                const PayloadLayout& page) {
  std::vector<std::span<const std::byte>> pages;
  for (const EncodedBlock& block : blocks) {
    pages.push_back(block.frame.span().first(page.page_bytes));
  }
  return pages;
}

// The sinks of each first block, as its frame has them.
std::vector<std::span<const std::byte>> SinksOf(const EncodedSample& sample) {
  std::vector<std::span<const std::byte>> sinks;
  for (const EncodedBlock& block : sample.first) {
    const PayloadLayout layout = PayloadLayout::Of(block.header);
    sinks.push_back(
        block.frame.span().subspan(layout.sinks, layout.num_kv_heads * layout.sink_head_bytes));
  }
  return sinks;
}

absl::Status MakePools(const AttentionCase& c, const EncodedSample& sample, const HostInputs& host,
                       void* stream, LaunchBuffers& buffers) {
  const BlockTable& table = buffers.table;
  PKV_ASSIGN_OR_RETURN(buffers.pages,
                       ItemPool::Make(PagesOf(sample.rest, sample.page), table.num_pages, stream));
  const auto first = PagesOf(sample.first, sample.page);
  for (int r = 0; !first.empty() && r < c.batch; ++r) {
    if (host.num_blocks[r] == 0) continue;
    PKV_RETURN_IF_ERROR(buffers.pages.Put(table.page(r, 0), first[host.slots[r] % first.size()]));
  }
  std::vector<std::span<const std::byte>> windows, banks;
  for (const auto& window : host.windows) windows.push_back(Bytes(window));
  if (!host.bank.empty()) banks.push_back(Bytes(host.bank));
  PKV_ASSIGN_OR_RETURN(buffers.windows, ItemPool::Make(windows, c.batch, stream));
  PKV_ASSIGN_OR_RETURN(buffers.banks, ItemPool::Make(banks, c.batch, stream));
  PKV_ASSIGN_OR_RETURN(buffers.sinks, ItemPool::Make(SinksOf(sample), c.batch, stream));
  return absl::OkStatus();
}

absl::StatusOr<LaunchBuffers> MakeBuffers(const AttentionCase& c, const EncodedSample& sample,
                                          const HostInputs& host,
                                          const std::vector<RequestLength>& lengths,
                                          const AttentionTiming& timing, uint64_t seed,
                                          void* stream) {
  LaunchBuffers buffers;
  buffers.table = MakeBlockTable(lengths, seed);
  PKV_RETURN_IF_ERROR(MakePools(c, sample, host, stream, buffers));
  PKV_ASSIGN_OR_RETURN(buffers.out, DeviceBuffer::Make(host.q.size() * sizeof(uint16_t), stream));
  // All ones are NaN: what a launch does not write shows.
  PKV_RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(buffers.out.data(), 0xff, buffers.out.size(),
                                                 static_cast<cudaStream_t>(stream)),
                                 "poison the output"));
  DecodeAttentionArgs& args = buffers.args;
  args.batch = c.batch;
  args.sm_scale = static_cast<float>(1 / std::sqrt(static_cast<double>(c.head_dim)));
  PKV_ASSIGN_OR_RETURN(args.q, Upload(host.q, stream, buffers));
  args.out = buffers.out.data();
  args.pages = buffers.pages.data();
  args.page_stride = buffers.pages.stride();
  args.block_table_stride = buffers.table.stride;
  PKV_ASSIGN_OR_RETURN(args.block_table, Upload(buffers.table.pages, stream, buffers));
  PKV_ASSIGN_OR_RETURN(args.num_blocks, Upload(host.num_blocks, stream, buffers));
  args.windows = reinterpret_cast<uint16_t*>(buffers.windows.data());
  args.window_stride = buffers.windows.stride() / kElementBytes;
  args.window_capacity = timing.window_tokens;
  PKV_ASSIGN_OR_RETURN(args.num_window_tokens, Upload(host.num_window_tokens, stream, buffers));
  PKV_ASSIGN_OR_RETURN(args.token_k, Upload(host.newest_k, stream, buffers));
  PKV_ASSIGN_OR_RETURN(args.token_v, Upload(host.newest_v, stream, buffers));
  PKV_ASSIGN_OR_RETURN(const int32_t* slots, Upload(host.slots, stream, buffers));
  args.window_ids = args.sink_ids = args.bank_ids = slots;
  args.sinks = reinterpret_cast<const uint16_t*>(buffers.sinks.data());
  args.sink_stride = buffers.sinks.stride() / kElementBytes;
  args.banks = reinterpret_cast<const uint16_t*>(buffers.banks.data());
  args.bank_stride = buffers.banks.stride() / kElementBytes;
  args.bank_capacity = host.bank_capacity;
  PKV_ASSIGN_OR_RETURN(args.num_patterns, Upload(host.num_patterns, stream, buffers));
  return buffers;
}

// Attention in fp64 for a few (request, kv head), and what a launch's output is off from it.
class OutputCheck {
 public:
  OutputCheck(const AttentionCase& c, const EncodedSample& sample, const HostInputs& host,
              const std::vector<RequestLength>& lengths, const AttentionTiming& timing,
              ThreadPool* pool)
      : c_(c), sample_(sample), host_(host), lengths_(lengths), timing_(timing) {
    const double sm_scale = 1 / std::sqrt(static_cast<double>(c.head_dim));
    for (int i = 0; i < 3; ++i) {
      const int request = i * (c.batch - 1) / 2, kv_head = i * (c.num_kv_heads - 1) / 2;
      std::vector<double> q;
      for (size_t at = At(request, kv_head); q.size() < GroupSize(); ++at) {
        q.push_back(Widen(host.q[at], timing.query_type));
      }
      places_.push_back(
          {request, kv_head, PageReference(sample, kv_head, q, c.heads_per_kv(), sm_scale, pool)});
    }
  }

  double RelativeErrorOf(const LaunchBuffers& buffers, const std::vector<uint16_t>& out) const {
    std::vector<double> actual, expected;
    for (const Place& place : places_) {
      const std::vector<double> part = Expect(buffers.table, place);
      const size_t at = At(place.request, place.kv_head);
      for (size_t i = 0; i < part.size(); ++i) {
        actual.push_back(Widen(out[at + i], timing_.query_type));
      }
      expected.insert(expected.end(), part.begin(), part.end());
    }
    return RelativeError(actual, expected);
  }

 private:
  struct Place {
    int request, kv_head;
    PageReference reference;
  };

  size_t GroupSize() const { return size_t(c_.heads_per_kv()) * c_.head_dim; }
  size_t At(int request, int kv_head) const {
    return (size_t(request) * c_.num_kv_heads + kv_head) * GroupSize();
  }

  std::vector<double> Expect(const BlockTable& table, const Place& place) const {
    const int r = place.request;
    int first = -1;
    std::vector<int> rest;
    for (int i = 0; i < lengths_[r].num_blocks; ++i) {
      if (i == 0 && !sample_.first.empty()) {
        first = host_.slots[r] % static_cast<int>(sample_.first.size());
      } else {
        rest.push_back(table.page(r, i) % static_cast<int>(sample_.rest.size()));
      }
    }
    const size_t size = size_t(lengths_[r].num_window_tokens) * c_.head_dim;
    const auto rows = [&](bool is_v) {
      return std::span(WindowRow(host_, c_, timing_.window_tokens, r, is_v, place.kv_head, 0),
                       size);
    };
    return place.reference.Attend(first, rest, rows(false), rows(true));
  }

  const AttentionCase& c_;
  const EncodedSample& sample_;
  const HostInputs& host_;
  const std::vector<RequestLength>& lengths_;
  const AttentionTiming& timing_;
  std::vector<Place> places_;
};

absl::StatusOr<double> LargestError(const OutputCheck& check,
                                    const std::vector<LaunchBuffers>& copies) {
  double largest = 0;
  for (const LaunchBuffers* copy : {&copies.front(), &copies.back()}) {
    std::vector<uint16_t> out(copy->out.size() / sizeof(uint16_t));
    PKV_RETURN_IF_ERROR(copy->out.CopyToHost(std::as_writable_bytes(std::span(out))));
    const double error = check.RelativeErrorOf(*copy, out);
    if (std::isnan(error)) return error;
    largest = std::max(largest, error);
  }
  return largest;
}

}  // namespace

absl::StatusOr<AttentionRow> TimeAttention(const AttentionCase& attention_case, const SampleKv& kv,
                                           const EncodedSample& sample,
                                           const AttentionTiming& timing, void* stream,
                                           ThreadPool* pool) {
  const std::vector<RequestLength> lengths =
      PlanLengths(attention_case, timing.window_tokens, timing.seed);
  AttentionRow row;
  row.attention_case = attention_case;
  row.preset = sample.params.name;
  row.bytes = CountLaunchBytes(attention_case, sample.params, lengths);
  row.operations = CountOperations(attention_case, lengths);
  row.copies = PlanCopies(row.bytes.own(), timing.l2_bytes);
  const ComputeContext ctx = {.device = Device::kCuda, .stream = stream};
  PKV_ASSIGN_OR_RETURN(const std::unique_ptr<DecodeAttention> attention,
                       DecodeAttention::Make({.num_qo_heads = attention_case.num_qo_heads,
                                              .num_kv_heads = attention_case.num_kv_heads,
                                              .head_dim = attention_case.head_dim,
                                              .encoding = sample.params.encoding,
                                              .num_sinks = sample.params.num_sinks,
                                              .query_type = timing.query_type,
                                              .kernel = timing.kernel,
                                              .overlaps_previous = timing.overlaps_previous},
                                             ctx));
  const HostInputs host = MakeHostInputs(attention_case, kv, sample, lengths, timing);
  std::vector<LaunchBuffers> copies(row.copies);
  for (int i = 0; i < row.copies; ++i) {
    PKV_ASSIGN_OR_RETURN(copies[i], MakeBuffers(attention_case, sample, host, lengths, timing,
                                                timing.seed + i, stream));
  }
  PKV_ASSIGN_OR_RETURN(const LaunchTimes times,
                       TimeLaunches(stream, row.copies, timing.repetitions, [&](int copy) {
                         return attention->Run(copies[copy].args, ctx);
                       }));
  row.us = times.us;
  row.launches = times.launches;
  row.graph = times.graph;
  const OutputCheck check(attention_case, sample, host, lengths, timing, pool);
  PKV_ASSIGN_OR_RETURN(row.relative_error, LargestError(check, copies));
  return row;
}

}  // namespace pkv
