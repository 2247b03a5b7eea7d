"""Writes static archives that stand for the CUDA libraries when a program is linked: trampolines.py CUDARC KERNELS OUT.

candle names the CUDA libraries as needed by every program it is linked into, so none would start without them. Here each
of their functions is a jump to an address that is looked up at its first call: in the real library, or, where that is not
installed, in a function that answers with the library's own error code. So a program starts anywhere, and learns from
`cuInit` that there is no GPU.

CUDARC is the source of the crate cudarc, which declares the functions; KERNELS that of candle-kernels, whose kernels for
quantised language models are left out: their launchers end the program with a message, and nothing here calls them.
"""

import os
import pathlib
import re
import subprocess
import sys

# The name to link by, cudarc's module, the real library, and the code for "there is no such library".
LIBRARIES = [
    ("cuda", "driver", "libcuda.so.1", 100),  # CUDA_ERROR_NO_DEVICE
    ("cublas", "cublas", "libcublas.so.13", 1),  # CUBLAS_STATUS_NOT_INITIALIZED
    ("cublasLt", "cublaslt", "libcublasLt.so.13", 1),
    ("curand", "curand", "libcurand.so.10", 203),  # CURAND_STATUS_INITIALIZATION_FAILED
    ("nvrtc", "nvrtc", "libnvrtc.so.13", 11),  # NVRTC_ERROR_INTERNAL_ERROR
    ("cudnn", "cudnn", "libcudnn.so.9", 1001),  # CUDNN_STATUS_NOT_INITIALIZED
]

DECLARATION = re.compile(r'extern "C" \{\s*(?:pub )?fn (\w+)\([^{}]*?\)(?: -> ([^;{}]+))?;\s*\}', re.S)

LOOKUP = r"""
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static const char *const NAMES[] = {%(names)s};
static const char KINDS[] = "%(kinds)s";
__attribute__((visibility("hidden"))) void *%(library)s_slots[%(count)d];

static int status(void) { return %(code)d; }
static const char *text(void) { return "%(file)s is not installed"; }
static unsigned long zero(void) { return 0; }

__attribute__((visibility("hidden"), used)) void *%(library)s_find(unsigned i) {
    static void *library;
    static int told;
    if (!library) library = dlopen("%(file)s", RTLD_NOW | RTLD_LOCAL);
    void *found = library ? dlsym(library, NAMES[i]) : 0;
    if (!found) {
        /* Without a driver there is no GPU, and the program says so itself. */
        if (%(tell)d && !told++)
            fprintf(stderr, library ? "%(file)s is too old: it has no %%s\n" : "%(file)s is not installed, or not on LD_LIBRARY_PATH\n", NAMES[i]);
        found = KINDS[i] == 's' ? (void *)status : KINDS[i] == 't' ? (void *)text : (void *)zero;
    }
    __atomic_store_n(&%(library)s_slots[i], found, __ATOMIC_RELEASE);
    return found;
}

__asm__(
    ".text\n"
    "%(library)s_resolve:\n"
    "  pushq %%rdi\n  pushq %%rsi\n  pushq %%rdx\n  pushq %%rcx\n  pushq %%r8\n  pushq %%r9\n"
    "  subq $136, %%rsp\n"
    "  movups %%xmm0, (%%rsp)\n  movups %%xmm1, 16(%%rsp)\n  movups %%xmm2, 32(%%rsp)\n  movups %%xmm3, 48(%%rsp)\n"
    "  movups %%xmm4, 64(%%rsp)\n  movups %%xmm5, 80(%%rsp)\n  movups %%xmm6, 96(%%rsp)\n  movups %%xmm7, 112(%%rsp)\n"
    "  movl %%eax, %%edi\n  call %(library)s_find\n"
    "  movups (%%rsp), %%xmm0\n  movups 16(%%rsp), %%xmm1\n  movups 32(%%rsp), %%xmm2\n  movups 48(%%rsp), %%xmm3\n"
    "  movups 64(%%rsp), %%xmm4\n  movups 80(%%rsp), %%xmm5\n  movups 96(%%rsp), %%xmm6\n  movups 112(%%rsp), %%xmm7\n"
    "  addq $136, %%rsp\n"
    "  popq %%r9\n  popq %%r8\n  popq %%rcx\n  popq %%rdx\n  popq %%rsi\n  popq %%rdi\n"
    "  jmp *%%rax\n"
%(jumps)s);
"""

# No function takes a variable number of arguments, so `rax` is free at entry.
JUMP = (
    '    ".globl {name}\\n.type {name}, @function\\n{name}:\\n  movq {library}_slots+{offset}(%rip), %rax\\n'
    "  testq %rax, %rax\\n  jz 1f\\n  jmp *%rax\\n1:  movl ${i}, %eax\\n  jmp {library}_resolve\\n\"\n"
)


def declarations(text):
    """Every function's name and what it answers with: s(tatus), t(ext) or (some other) n(umber)."""
    found = {}
    for name, answer in DECLARATION.findall(text):
        kind = "t" if "c_char" in answer else "n" if answer.strip() in ("usize", "") else "s"
        found[name] = kind
    return found


def archive(out, name, source):
    (out / f"{name}.c").write_text(source)
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-c", "-O2", "-fPIC", "-o", out / f"{name}.o", out / f"{name}.c"], check=True)
    (out / f"lib{name}.a").unlink(missing_ok=True)
    subprocess.run(["ar", "rcs", out / f"lib{name}.a", out / f"{name}.o"], check=True)


def main(cudarc, kernels, out):
    out.mkdir(parents=True, exist_ok=True)
    for library, module, file, code in LIBRARIES:
        functions = declarations((cudarc / "src" / module / "sys" / "mod.rs").read_text())
        if not functions:
            sys.exit(f"{cudarc}: no function of {module} found: cudarc declares them in another way now")
        jumps = [JUMP.format(name=name, library=library, offset=8 * i, i=i) for i, name in enumerate(functions)]
        values = {
            "library": library, "file": file, "code": code, "count": len(functions), "tell": int(library != "cuda"),
            "names": ", ".join(f'"{name}"' for name in functions), "kinds": "".join(functions.values()),
            "jumps": "".join(jumps),
        }  # fmt: skip
        archive(out, library, LOOKUP % values)
    text = (kernels / "src" / "ffi.rs").read_text()
    launchers = re.findall(r"pub fn (\w+)\(", text)
    body = 'static void absent(void) { fputs("this build has no quantised kernels\\n", stderr); abort(); }\n'
    body += "".join(f"void {name}(void) {{ absent(); }}\n" for name in launchers)
    (out / "quantised.c").write_text("#include <stdio.h>\n#include <stdlib.h>\n" + body)
    archive(out, "cudart", "/* Only the kernels that are left out would need it. */\n")


if __name__ == "__main__":
    main(*(pathlib.Path(argument) for argument in sys.argv[1:4]))
