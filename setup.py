"""Two package roots, package data, and csrc as an optional extension (metadata lives in pyproject.toml).

The extension is built when torch and a C++ compiler are at hand. Where they are not, or where the compiler fails, one
line says so and the install goes on: every op also has a PyTorch path. `SYNPRO_BUILD_CSRC=0` skips it, and
`SYNPRO_BUILD_CSRC=1` makes a failed build an error.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
CHOICE = os.environ.get("SYNPRO_BUILD_CSRC", "auto")


def say(text: str) -> None:
    """Print one line that survives pip's capture in verbose mode and the Makefile's log."""
    print(f"synpro csrc: {text}", file=sys.stderr, flush=True)


def extension() -> tuple[list[Any], dict[str, Any]]:
    """Return (ext_modules, cmdclass); both empty where the extension is not to be built."""
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.cpp"))
    if CHOICE == "0" or not sources:
        say("not built (SYNPRO_BUILD_CSRC=0)" if sources else "not built (no sources)")
        return [], {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        if CHOICE == "1":
            raise
        say(f"not built (torch is not importable here: {error}); PyTorch paths are used instead")
        return [], {}

    class OptionalBuild(BuildExtension):
        """BuildExtension that reports a failure in one line instead of ending the install."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:  # whatever compilers and linkers raise: the engine works without this file
                if CHOICE == "1":
                    raise
                self.extensions = []  # an editable install copies what is listed here, and there is nothing to copy
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                say(f"not built ({reason}); PyTorch paths are used instead")
            else:
                say("built")

    # Compiled with OpenMP but not linked against it: the symbols come from whichever OpenMP library torch has loaded,
    # so there is one thread pool and torch.set_num_threads holds here too.
    flags = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-Wall"]
    # In a header of its own, so that an edit of one file compiles no other but the one that says so.
    made = ROOT / "build" / "csrc"
    made.mkdir(parents=True, exist_ok=True)
    digest = runpy.run_path(str(ROOT / "kernels/synpro_kernels/common/sources.py"))["sources_digest"]
    (made / "sources.h").write_text(f'#define SYNPRO_SOURCES "{digest(ROOT / "csrc")}"\n')
    directories = [str(ROOT / "csrc"), str(made)]
    module = CppExtension("synpro_kernels._C", sources, extra_compile_args=flags, include_dirs=directories)
    return [module], {"build_ext": OptionalBuild}


ext_modules, cmdclass = extension()
setup(
    packages=[
        *find_packages(".", include=["synpro_engine", "synpro_engine.*"]),
        *find_packages("kernels", include=["synpro_kernels", "synpro_kernels.*"]),
    ],
    package_dir={"synpro_engine": "synpro_engine", "synpro_kernels": "kernels/synpro_kernels"},
    # tests/test_installed.py holds this against what is tracked: a file that is not named here is not installed.
    package_data={
        "synpro_engine": [
            "py.typed",
            "recipes/**/*.yaml",
            "report/**/*.j2",
            "report/*.css",
            "reward/*.txt",
            "reward/heads/*.json",
            "reward/judges/*.yaml",
        ],
        "synpro_kernels": ["py.typed"],
    },
    include_package_data=False,
    ext_modules=ext_modules,
    cmdclass=cmdclass,
)
