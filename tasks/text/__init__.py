"""Pure functions over text, importable by any engine's workers.

Compiled kernels are kept in a folder of their own for these very sources: numba looks at the file of a kernel alone,
not at those of the kernels that it calls, so after a change of the scanner it would go on with the old one inside.
`$NUMBA_CACHE_DIR`, else `$XDG_CACHE_HOME/gptloom`, holds that folder. Where it cannot be written, this process and its
children compile anew, into a folder that goes when the process ends.
"""

import atexit
import hashlib
import os
import shutil
import tempfile
from pathlib import Path


def _keep_kernels() -> None:
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    these, given = hashlib.sha256(sources).hexdigest()[:16], os.environ.get("NUMBA_CACHE_DIR")
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gptloom" / "kernels"
    if Path(given or "").name != these:  # else a parent has done so
        os.environ["NUMBA_CACHE_DIR"] = str(_writable(Path(given or usual) / these))


def _writable(folder: Path) -> Path:
    """The folder, else one for now: where numba can write nowhere, it refuses to import a kernel."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="gptloom-kernels-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


_keep_kernels()
