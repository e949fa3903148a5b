"""Time the U-Net and its cheaper variants in plain PyTorch and optimised: do saved MACs become saved time?

    python -m benchmarks.unet_engines --threads 1

All forms are timed in turns in one process. `optimize` chooses every engine. The script writes
benchmarks/results/unet_engines.json and prints the table. Ratios are relative to the dense U-Net in plain PyTorch.
"""

import argparse
from pathlib import Path

import torch

import leanconv as lc
from leanconv.files import write_json
from leanconv.measure.device import describe

CONVS = ("conv", "depthwise_separable", "group_pointwise", "spconv", "splconv", "hetconv")
RESULT = Path(__file__).parent / "results" / "unet_engines.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--base", type=int, default=32)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--convs", nargs="+", default=list(CONVS))
    parser.add_argument("--budget", type=float, default=90, help="seconds for each optimize")
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    x = torch.randn(1, 3, arguments.size, arguments.size)
    models, engines = {}, {}
    for conv in arguments.convs:
        model = lc.load(f"leanconv:unet?base={arguments.base}&conv={conv}").eval()
        fast = lc.optimize(model, x, budget_s=arguments.budget)
        print(f"\n{conv}\n{fast.choices}", flush=True)
        models |= {conv: model, f"{conv}, optimised": fast}
        engines[conv] = fast.choices.to_dict()
    comparison = lc.compare(models, x, budget_s=20.0)
    print(f"\n{comparison}")
    words = (
        f"--threads {arguments.threads} --base {arguments.base} --size {arguments.size} --budget {arguments.budget:g}"
    )
    command = f"python -m benchmarks.unet_engines {words} --convs {' '.join(arguments.convs)}"
    report = {"command": command, "machine": describe(), "comparison": comparison.to_dict(), "engines": engines}
    write_json(arguments.out, report)


if __name__ == "__main__":
    main()
