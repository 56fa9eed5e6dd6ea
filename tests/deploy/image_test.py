"""Builds both images of deploy/docker/Containerfile with buildah, and runs what is in them.

Usage: PKV_BINARY_DIR=.build/release image_test.py    exits 77 (skipped) without buildah

The stages that compile need a registry and a quarter of an hour; a build context stands in for
each: the rootfs that stage_rootfs.sh makes of the built pkvd. All behind them is built as written.
"""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
CONTAINERFILE = SOURCE / "deploy/docker/Containerfile"
BUILD = Path(os.environ.get("PKV_BINARY_DIR", ".build/release")).resolve()
TARGETS = {"runtime": "build", "runtime-cuda": "build-cuda"}  # target: stage that compiles it


def run(command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                          check=False, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


class ImageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.scratch = Path(cls.folder.name)
        cls.staged = cls.scratch / "context" / "rootfs"
        cls.staged.parent.mkdir()
        # pkvd alone: what workers load on a CUDA machine is most of a gigabyte.
        run([SOURCE / "deploy/docker/stage_rootfs.sh", cls.staged, BUILD / "kvstore/pkvd"])
        cls.mounted, cls.config = {}, {}
        for target, stage in TARGETS.items():
            context = cls.staged.parent
            cls.buildah("bud", "--isolation", "chroot", "--target", target, "-t", target,
                        "--build-context", f"{stage}={context}", "--build-arg", "REVISION=abc123",
                        *(word for other in {*TARGETS.values(), "cuda", "source"} - {stage}
                          for word in ("--build-context", f"{other}={context}")),
                        "-f", CONTAINERFILE, context)
            inspected = json.loads(cls.buildah("inspect", "--type", "image", target))
            cls.config[target] = inspected["OCIv1"]["config"]
            container = cls.buildah("from", "--name", target + "-run", target).strip()
            cls.addClassCleanup(cls.buildah, "rm", container)
            cls.mounted[target] = Path(cls.buildah("mount", container).strip())

    @classmethod
    def buildah(cls, *words):
        return run(["buildah", "--root", cls.scratch / "storage", "--runroot",
                    cls.scratch / "run", "--storage-driver", "vfs", *words])

    def files(self, target):
        return [path for path in self.mounted[target].rglob("*") if not path.is_symlink()]

    def test_is_not_root_and_ends_on_sigterm(self):
        for config in self.config.values():
            self.assertEqual(config["User"], "65532:65532")
            self.assertEqual(config["StopSignal"], "SIGTERM")
            self.assertEqual(config["Cmd"], ["/usr/bin/pkvd"])
            self.assertEqual(config.get("Entrypoint") or [], [])

    def test_labels_name_version_and_revision(self):
        version = re.search(r"project\(pkv VERSION (\S+)", (SOURCE / "CMakeLists.txt").read_text())
        for config in self.config.values():
            labels = config["Labels"]
            prefix = "org.opencontainers.image."
            self.assertEqual(labels[prefix + "version"], version[1])
            self.assertEqual(labels[prefix + "revision"], "abc123")
            self.assertEqual(labels[prefix + "licenses"], "Apache-2.0")

    def test_only_the_cuda_image_asks_for_the_driver(self):
        asks = {target: any("NVIDIA_DRIVER_CAPABILITIES" in each for each in config["Env"])
                for target, config in self.config.items()}
        self.assertEqual(asks, {"runtime": False, "runtime-cuda": True})

    def test_holds_no_shell_no_package_tool_and_nothing_setuid(self):
        for target in TARGETS:
            binaries = {path.name for path in (self.mounted[target] / "usr/bin").iterdir()}
            self.assertEqual(binaries, {"pkvd"})
            for path in self.files(target):
                mode = path.stat().st_mode
                self.assertFalse(mode & (stat.S_ISUID | stat.S_ISGID), path)
                if path.name != "tmp":
                    self.assertFalse(mode & stat.S_IWOTH, path)

    def test_every_library_says_which_package_it_is_from(self):
        packages = self.mounted["runtime"] / "var/lib/dpkg/status.d"
        names = {path.name for path in packages.iterdir()}
        self.assertLessEqual({"libc6", "libgrpc29", "libprotobuf32"}, names)
        for name in names:
            self.assertIn(f"Package: {name}\n", (packages / name).read_text())
            copyright_file = self.mounted["runtime"] / "usr/share/doc" / name / "copyright"
            self.assertTrue(copyright_file.exists())

    def test_pkvd_runs_as_the_image_says(self):
        for target in TARGETS:
            printed = self.buildah("run", "--isolation", "chroot", target + "-run", "--",
                                   "/usr/bin/pkvd", "--version")
            self.assertRegex(printed, r"pkvd \d+\.\d+\.\d+")

    def test_the_demo_model_is_where_the_manifests_look(self):
        text = (SOURCE / "deploy/k8s/base/prefill.yaml").read_text()
        model = re.search(r"PKV_MODEL, value: (\S+)}", text)[1]
        for target in TARGETS:
            self.assertTrue((self.mounted[target] / model[1:] / "model.safetensors").exists())

    def test_every_binary_of_the_manifests_is_staged(self):
        text = CONTAINERFILE.read_text()
        for name in ("pkvd", "pkv-prefill", "pkv-decode", "pkvctl"):
            self.assertEqual(len(re.findall(rf"\.build/demo/\w+/{name}\b", text)), len(TARGETS))

    def test_only_the_cuda_image_has_cublas_which_workers_open_by_themselves(self):
        stages = dict(re.findall(r"(?ms)^FROM \S+ AS (build\S*)$(.*?)(?=^FROM )",
                                 CONTAINERFILE.read_text()))
        self.assertNotIn("libcublas", stages["build"])
        self.assertIn("--library /usr/local/cuda/lib64/libcublas.so.13", stages["build-cuda"])

    def test_a_library_that_is_opened_by_name_comes_along(self):
        staged = self.scratch / "with-library"
        library = "/usr/lib/x86_64-linux-gnu/libresolv.so.2"
        run([SOURCE / "deploy/docker/stage_rootfs.sh", staged, "--library", library,
             BUILD / "kvstore/pkvd"])
        self.assertFalse((self.staged / library[1:]).exists())
        self.assertTrue((staged / library[1:]).exists())

    def test_a_binary_that_misses_a_library_is_refused(self):
        broken = self.scratch / "broken"
        elf = bytearray((BUILD / "kvstore/pkvd").read_bytes())
        at = elf.index(b"libgrpc++.so.1.51")
        elf[at:at + 7] = b"nowhere"
        broken.write_bytes(elf)
        broken.chmod(0o755)
        with self.assertRaisesRegex(RuntimeError, "not found"):
            run([SOURCE / "deploy/docker/stage_rootfs.sh", self.scratch / "refused", broken])


if __name__ == "__main__":
    if not shutil.which("buildah"):
        print("buildah is not installed")
        sys.exit(77)
    if os.geteuid() != 0:
        print("buildah's chroot isolation needs root here")
        sys.exit(77)
    unittest.main()
