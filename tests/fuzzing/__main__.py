"""Fuzz one entry: ``python -m tests.fuzzing ENTRY [--bytes N] [--codec json] [--seed S] [--plain]``.

With atheris the fuzzer is guided by what the package runs; ``--plain`` mutates without it. Corpus and
findings lie in ``.fuzzing/ENTRY``. It ends after *N* bytes, or with what went wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__)
    parser.add_argument("entry", choices=["channel", "rpc", "messages", "session"])
    parser.add_argument(
        "--bytes", type=int, default=10_000_000, help="bytes of input, by default ten million"
    )
    parser.add_argument("--codec", choices=["msgpack", "json"], default="msgpack")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quiet", action="store_true", help="show only the outcome")
    parser.add_argument("--plain", action="store_true", help="without atheris")
    options = parser.parse_args()
    if options.plain:
        from tests.fuzzing.fuzz import Fuzzer, fuzz_plainly

        fuzzer = Fuzzer(options.entry, options.codec)
        fuzz_plainly(fuzzer, options.bytes, options.seed)
        print(fuzzer)
        return
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is missing: pip install -e '.[fuzz]', or use --plain")
    corpus = Path(".fuzzing") / f"{options.entry}-{options.codec}"
    corpus.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=["aiomas_ng"]):  # so nothing of it may be imported before
        from tests.fuzzing.fuzz import Fuzzer
    fuzzer = Fuzzer(options.entry, options.codec)
    begin = time.perf_counter()

    def run(data: bytes) -> None:
        fuzzer.run(data)
        if fuzzer.size >= options.bytes:
            print(f"{fuzzer} in {time.perf_counter() - begin:.0f} s, seed {options.seed}", flush=True)
            os._exit(0)  # atheris has no other way to end

    arguments = [
        "-max_len=1024",
        f"-seed={options.seed}",
        "-len_control=0",
        "-rss_limit_mb=4096",
        "-print_final_stats=0",
    ]
    if options.quiet:
        arguments.append("-verbosity=0")
    atheris.Setup([sys.argv[0], *arguments, f"-artifact_prefix={corpus}-", str(corpus)], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
