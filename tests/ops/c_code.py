"""Small C programs over the kernels' headers: what no kernel shows by itself."""

import ctypes
import subprocess

from intarsia.ops.native import compiled


def loaded(source, folder):
    """It, compiled as the kernels are."""
    (folder / "some.c").write_text(source)
    header = compiled.__file__.rpartition("/")[0]
    command = [*compiled._compiler(), *compiled.FLAGS, *compiled.SHARED, f"-I{header}", "some.c", "-o", "some.so"]
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "some.so"))
