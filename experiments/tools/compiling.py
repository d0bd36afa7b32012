"""Flags for programs that run once and briefly. Imports nothing of JAX, which reads them first."""

import importlib.metadata
import os


def quick_flags() -> str:
    """What `XLA_FLAGS` should say to leave machine code as it comes, which takes a third of the time.

    Not to optimise is half of it; the older emitters of loops and programs in one piece, for which
    jaxlib 0.10 has flags, are the rest. XLA reads its flags when it is first used, and ends a process
    that names one it does not know. Flags that are set already come last, and win.
    """
    flags = ["--xla_backend_optimization_level=0"]
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        flags += [
            "--xla_cpu_use_fusion_emitters=false",
            "--xla_cpu_parallel_codegen_split_count=1",
        ]
    return " ".join([*flags, os.environ.get("XLA_FLAGS", "")]).strip()
