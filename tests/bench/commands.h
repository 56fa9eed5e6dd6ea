#ifndef PKV_TESTS_BENCH_COMMANDS_H_
#define PKV_TESTS_BENCH_COMMANDS_H_

#include <CLI/CLI.hpp>

namespace pkv {

// Adds `kernels`; running it sets exit_code. `command_line` is what the report says it was.
void AddKernelsCommand(CLI::App& app, const std::string& command_line, int& exit_code);
// The same of `serve`, the load on running workers.
void AddServeCommand(CLI::App& app, const std::string& command_line, int& exit_code);

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_COMMANDS_H_
