"""Launchers of several processes start modules."""

from dynamo_mtl.cli import main

main()
