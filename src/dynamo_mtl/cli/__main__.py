"""Run the command line as a module, as launchers of several processes do."""

from dynamo_mtl.cli import main

main()
