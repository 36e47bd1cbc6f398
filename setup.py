"""Packaging of verifier: the Python package and its compiled module, built by CMake.

Environment: VERIFIER_CUDA=AUTO|ON|OFF, VERIFIER_CUDA_ARCHITECTURES, VERIFIER_SIMD=ALL|BASELINE, CXX,
CMAKE_BUILD_PARALLEL_LEVEL; CMakeLists.txt says what each does. torch is not needed to build.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
OPTIONS = ("VERIFIER_CUDA", "VERIFIER_CUDA_ARCHITECTURES", "VERIFIER_SIMD")
NO_COMPILER = """
verifier needs a C++17 compiler (GCC 11 or Clang 14 or newer) to build its kernels, and none was found.
Install one and try again:
    Debian, Ubuntu:  apt-get install g++
    Fedora, RHEL:    dnf install gcc-c++
    macOS:           xcode-select --install
    conda:           conda install cxx-compiler
or point the environment variable CXX to it."""


def cmake_command() -> list[str]:
    """CMake from the build environment (the Python package) or from PATH."""
    try:
        import cmake

        binary = Path(cmake.CMAKE_BIN_DIR) / "cmake"
        if binary.exists():
            return [str(binary)]
    except ImportError:
        pass  # a system CMake serves as well
    found = shutil.which("cmake")
    if not found:
        raise SystemExit("verifier needs CMake 3.25 or newer to build its kernels: pip install cmake")
    return [found]


def ninja_path() -> str | None:
    """Ninja from the build environment or from PATH; None means CMake's default generator."""
    try:
        import ninja

        binary = Path(ninja.BIN_DIR) / "ninja"
        if binary.exists():
            return str(binary)
    except ImportError:
        pass  # a system ninja serves as well
    return shutil.which("ninja")


class CMakeBuild(build_ext):
    """Builds verifier.kernels._native with CMake instead of setuptools' own compiler calls."""

    def run(self) -> None:
        if not (os.environ.get("CXX") or any(shutil.which(c) for c in ("c++", "g++", "clang++"))):
            raise SystemExit(NO_COMPILER)
        super().run()

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        target.mkdir(parents=True, exist_ok=True)
        cmake = cmake_command()
        configure = [
            *cmake,
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        configure += [f"-D{name}={os.environ[name]}" for name in OPTIONS if name in os.environ]
        ninja = ninja_path()
        if ninja:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
        subprocess.run(configure, check=True)
        subprocess.run([*cmake, "--build", str(build), "--target", "_native", "-j", jobs], check=True)


setup(
    name="verifier",
    version="0.1.0",
    description="Formal verification of neural networks: proofs, counterexamples and certificates",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["verifier", "verifier.*"]),
    package_data={"verifier": ["**/*.npz", "**/*.json", "**/*.html", "**/*.j2", "**/*.gz"]},
    install_requires=[
        "torch>=2.8",
        "numpy",
        "onnx",
        "onnxruntime",
        "vnnlib",
        "highspy",
        "scipy",
        "rich",
        "jinja2",
        "matplotlib",
        "scikit-learn",
        "psutil",
        "cvxpy",
    ],
    ext_modules=[Extension("verifier.kernels._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    entry_points={"console_scripts": ["verifier = verifier.cli.main:main"]},
)
