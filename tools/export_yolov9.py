"""Export one of our YOLOv9 training forms: `python tools/export_yolov9.py c --form legacy --size 320 -o c.onnx`.

Prints one line: the file, its nodes, Conv nodes, parameters and bytes. Weights are random and calibrated, by seed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

FORMS = ("legacy", "legacy-bn", "dynamo")
NAMES = ("n", "t", "s", "m", "c", "e")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="export_yolov9.py", description="Export one of our YOLOv9 training forms.")
    made.add_argument("variant", choices=NAMES, metavar="VARIANT", help="n (ours, tiny), t, s, m, c or e")
    made.add_argument("--form", choices=FORMS, default="legacy", help="which exporter, default legacy")
    made.add_argument("--size", type=int, default=320, help="input height and width, a multiple of 32; default 320")
    made.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the ONNX file to write")
    made.add_argument("--dynamic", action="store_true", help="batch, height and width as symbolic dimensions")
    made.add_argument("--raw", action="store_true", help="also the six raw feature maps as outputs")
    made.add_argument("--width", type=float, default=1.0, help="multiplies every width, rounded to multiples of 8")
    made.add_argument("--nc", type=int, default=80, help="number of classes, default 80")
    made.add_argument("--extra-residual", action="store_true", help="one more residual around a RepConvN")
    made.add_argument("--seed", type=int, default=0, help="of weights, statistics and their perturbation; default 0")
    return made


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        from fixtures.disguise import conv_count, count_params, load
        from fixtures.export import Options, export
    except ImportError as error:
        print(f"export_yolov9.py: {error}; install it with: pip install 'fxrewrite[torch]'", file=sys.stderr)
        return 2
    options = Options(
        nc=args.nc,
        width=args.width,
        extra_residual=args.extra_residual,
        seed=args.seed,
        raw_outputs=args.raw,
        dynamic=args.dynamic,
    )
    try:
        path = export(args.variant, args.form, args.size, args.output, options)
    except (ValueError, OSError) as error:
        print(f"export_yolov9.py: {error}", file=sys.stderr)
        return 2
    model = load(path)
    print(
        f"{path}: {len(model.graph.node):,} nodes, {conv_count(model)} Conv, {count_params(model):,} parameters, "
        f"{path.stat().st_size:,} bytes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
