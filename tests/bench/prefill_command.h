#ifndef PKV_TESTS_BENCH_PREFILL_COMMAND_H_
#define PKV_TESTS_BENCH_PREFILL_COMMAND_H_

#include <CLI/CLI.hpp>

namespace pkv {

// Adds `prefill`: the CUDA prefill pass alone, without workers around it, with and without
// compression. Running it sets exit_code.
void AddPrefillCommand(CLI::App& app, int& exit_code);

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_PREFILL_COMMAND_H_
