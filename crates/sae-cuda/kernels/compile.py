"""Compiles CUDA sources to PTX with NVRTC: `python3 compile.py LIBNVRTC SOURCES OUT`.

`cargo xtask ptx` calls it with the NVRTC that it has installed. SOURCES is the folder of the `.cu` files. Each PTX begins with the SHA-256 of its source and
of all headers there, which a test compares with the files.
"""

import ctypes
import hashlib
import pathlib
import sys

ARCHITECTURE = "compute_80"


def source_hash(source: pathlib.Path) -> str:
    """Of the source and of every header beside it, in the order of their names."""
    files = [source, *sorted(source.parent.glob("*.cuh"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


class Nvrtc:
    """NVRTC through its C interface."""

    def __init__(self, library: str):
        self.calls = ctypes.CDLL(library)
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.calls.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def text(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        getattr(self.calls, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        getattr(self.calls, f"nvrtcGet{what}")(program, text)
        return text.value

    def compile(self, source: pathlib.Path) -> bytes:
        program = ctypes.c_void_p()
        name = source.name.encode()
        self.calls.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), name, 0, None, None)
        options = [f"--gpu-architecture={ARCHITECTURE}", "--std=c++17", f"--include-path={source.parent}"]
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if self.calls.nvrtcCompileProgram(program, len(options), array) != 0:
            sys.exit(f"{source}:\n{self.text('ProgramLog', program).decode()}")
        return self.text("PTX", program)


def main(library: str, sources: str, out: str) -> None:
    nvrtc = Nvrtc(library)
    for source in sorted(pathlib.Path(sources).glob("*.cu")):
        head = f"// {source.name} and the headers beside it, SHA-256: {source_hash(source)}\n"
        head += f"// Compiled by NVRTC {nvrtc.version} for {ARCHITECTURE}: `cargo xtask ptx`.\n"
        (pathlib.Path(out) / source.with_suffix(".ptx").name).write_bytes(head.encode() + nvrtc.compile(source))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
