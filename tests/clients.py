"""What tests of the server share."""

import asyncio
import time

KEY = "a-key-of-sixteen-and-more"


def wait_until(holds, seconds=10.0):
    """Wait for a condition, and say whether it came true."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


def together(*calls):
    """Run calls in threads at once; gives their results in order."""

    async def run():
        return await asyncio.gather(*(asyncio.to_thread(call) for call in calls))

    return asyncio.run(run())
