"""Reports what this machine lacks, before anything is installed. `make demo` and `make test` run it first."""

import importlib.util
import platform
import shutil
import sys
import sysconfig
from pathlib import Path


def missing() -> list[str]:
    """One line per missing requirement."""
    lacks = []
    if sys.version_info < (3, 11):
        lacks.append(f"Python 3.11 or newer (this is {platform.python_version()}): make PYTHON=/path/to/python3.11 …")
    if importlib.util.find_spec("ensurepip") is None:
        lacks.append("Python's venv module (Debian: apt-get install python3-venv)")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        lacks.append("Python's headers (Debian: apt-get install python3-dev)")
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        lacks.append("a C++ compiler: DeepSpeed builds its CPU optimizer (Debian: apt-get install g++)")
    return lacks


if __name__ == "__main__":
    if found := missing():
        sys.exit("this machine lacks:\n" + "\n".join(f"  - {item}" for item in found))
