"""Make the embedded base model of the demo: a small text-to-emoji model of the Flux.1 architecture.

python recipes/demo/make_base.py --work WORK render held-out autoencoder text assemble
python -m tuner run recipes/demo/_base.yaml source=WORK/base-init data.0.path=WORK/pictures --out WORK/run
python recipes/demo/make_base.py --work WORK --run WORK/run pack

Every stage can be made again alone. The results lie in WORK, those of the demo in `images`, `held-out.*` and `base`
beside this file (`pack --target DIR` writes the model elsewhere). `render` downloads the icon packages with
`npm pack`, or reads them from `--icons DIR` (folders `iconify-json-NAME/package`).
"""

import argparse
from pathlib import Path

from making.assemble import assemble, pack
from making.autoencoder import train_autoencoder
from making.pictures import render, write_held_out
from making.text import train_text

HERE = Path(__file__).resolve().parent
STAGES = ("render", "held-out", "autoencoder", "text", "assemble", "pack")


def run_stage(stage: str, args: argparse.Namespace) -> None:
    """Run one stage by its name."""
    if stage == "render":
        render(args.work, args.icons, HERE / "images")
    elif stage == "held-out":
        write_held_out(args.work, HERE)
    elif stage == "autoencoder":
        train_autoencoder(args.work)
    elif stage == "text":
        train_text(args.work)
    elif stage == "assemble":
        assemble(args.work)
    elif stage == "pack":
        if args.run is None:
            raise SystemExit("Give the folder of the finished training run: --run DIR.")
        pack(args.work, args.run, args.target)


def main() -> None:
    """Read the command line and run the stages in their order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=STAGES, help="the stages to run")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything in between")
    parser.add_argument("--icons", type=Path, help="folder with the unpacked icon packages")
    parser.add_argument("--run", type=Path, help="run folder of the trained denoiser, for `pack`")
    parser.add_argument("--target", type=Path, default=HERE / "base", help="where `pack` writes the model")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        if stage in args.stages:
            run_stage(stage, args)


if __name__ == "__main__":
    main()
