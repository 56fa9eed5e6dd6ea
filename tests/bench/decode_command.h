#ifndef PKV_TESTS_BENCH_DECODE_COMMAND_H_
#define PKV_TESTS_BENCH_DECODE_COMMAND_H_

#include <CLI/CLI.hpp>

namespace pkv {

// Adds `decode`: steps of the CUDA engine alone, without workers around it, and how many sequences
// fit. Running it sets exit_code.
void AddDecodeCommand(CLI::App& app, int& exit_code);

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_DECODE_COMMAND_H_
