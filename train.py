"""Train DYNAMO: ``python train.py --config config.yaml --phase all``. Like ``dynamo train config.yaml``."""

import argparse

from dynamo_mtl.cli import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="config.yaml", help="configuration file")
    parser.add_argument("--phase", default="all", help="1, 2, 3 or all")
    parser.add_argument("--resume", help="latest, or the folder of a state of a run that did not end")
    parser.add_argument("overrides", nargs="*", help="settings as key.sub=value")
    arguments = parser.parse_intermixed_args()
    resume = ["--resume", arguments.resume] if arguments.resume else []
    main(["train", arguments.config, *arguments.overrides, "--phase", arguments.phase, *resume])
