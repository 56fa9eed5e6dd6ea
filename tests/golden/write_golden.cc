// Writes the golden files that are missing, and their lines of the manifest. Never touches a file
// that exists: what was once released must stay readable as it was.
//
//   write_golden FOLDER      for example tests/golden/v2

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "tests/golden/golden_objects.h"

namespace {

// Returns whether the object's file exists now.
bool WriteIfMissing(const pkv::GoldenObject& object, const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / (object.name + ".bin");
  if (std::filesystem::exists(path)) return true;
  const absl::StatusOr<pkv::ObjectBuilder> builder = pkv::BuildGolden(object);
  if (!builder.ok()) {
    std::fprintf(stderr, "%s: %s\n", object.name.c_str(), builder.status().ToString().c_str());
    return false;
  }
  const std::span<const std::byte> bytes = builder->bytes();
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  // The format of sha256sum, so that `sha256sum -c MANIFEST.sha256` checks the folder.
  std::ofstream manifest(folder / "MANIFEST.sha256", std::ios::app);
  manifest << pkv::Sha256({bytes}).ToHex() << "  " << path.filename().string() << "\n";
  std::printf("%s: %zu bytes\n", path.filename().c_str(), bytes.size());
  return file.good() && manifest.good();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
    return 2;
  }
  bool ok = true;
  for (const pkv::GoldenObject& object : pkv::GoldenObjects()) {
    ok = WriteIfMissing(object, argv[1]) && ok;
  }
  return ok ? 0 : 1;
}
