"""Peak memory of one process that loads a model, fills its context and answers.

    python benchmarks/peak_memory.py MODEL --context 4096

Prints JSON, in bytes: peak, weights (as packed), kv (of the whole context), and the rest.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ANSWER = 64


def peak_bytes() -> int:
    """Most resident memory this process ever had.

    Linux is asked for this program's own peak: ru_maxrss there remembers the parent's too.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (s for s in status.read_text().splitlines() if s.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="installed name, or packed folder")
    parser.add_argument("--context", type=int, default=4096, help="tokens; all of them are used")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()

    import stem_local

    with stem_local.load(args.model, context=args.context, threads=args.threads) as model:
        words = model.tokenize("All work and no play. ") * args.context
        prompt = model.detokenize(words[: args.context - ANSWER - 8])
        answer = model.generate(prompt, raw=True, max_tokens=ANSWER, temperature=0)
        config = model.config
        per_token = 2 * config.n_layers * config.kv_heads * config.head_dim * 2
        figures = {
            "peak": peak_bytes(),
            "weights": model.info.nbytes,
            "kv": per_token * args.context,
            "tokens": answer.stats.prompt_tokens + answer.stats.completion_tokens,
        }
    figures["rest"] = figures["peak"] - figures["weights"] - figures["kv"]
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
