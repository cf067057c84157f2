"""What is quick is equal: the answers of specgen_server.quick, held to the plain way's.

    python bench/quick_is_plain.py --cases 100000

One Quick meets all of the requests, so that what it knows of some is used for others.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter

from odd_requests import ALL_OPTIONS, odd_requests, plausible_requests
from specgen_core import InvalidRequest, generate
from specgen_server.quick import Quick


def main() -> int:
    """Compare as many as are asked for; exit code 1 where one differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    sources = (odd_requests(rng), plausible_requests(rng), plausible_requests(rng))
    quick = Quick(generate)
    seen: Counter[str] = Counter()
    for i in range(args.cases):
        wire = next(sources[i % len(sources)]).SerializeToString()
        options = rng.choice(ALL_OPTIONS)
        got = quick(wire, options)
        seen["routine" if got is not None else "left to the plain way"] += 1
        if got is None:
            continue
        try:
            expected = generate(wire, options).SerializeToString()
        except InvalidRequest:
            expected = b""
        if got != expected:
            print(f"case {i} of seed {args.seed} differs: {wire.hex()}, {options}")
            return 1
    print(", ".join(f"{count} {what}" for what, count in seen.most_common()))
    holds = seen["routine"] > args.cases // 10
    print("holds" if holds else "DOES NOT HOLD: hardly any of them was routine")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
