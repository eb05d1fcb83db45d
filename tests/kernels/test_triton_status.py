"""A Triton that cannot do what the kernels are written with is not used, whatever it raises."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("raise RuntimeError('built for another Python')", "not importable (built for another Python)"),
        ("__version__ = '3.2.0'", "Triton 3.2.0 lacks tensor descriptors, which 3.4 and newer have"),
    ],
)
def test_a_triton_of_no_use_is_told_with_its_reason(tmp_path: Path, module: str, reason: str) -> None:
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(module)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += "from synpro_kernels.common.triton_status import triton_status\n"
    code += "usable, why = triton_status(); print(usable, why)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False ") and reason in done.stdout
